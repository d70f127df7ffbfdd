"""Item vectors: one table for the input side of the decoder and for the output side.

Shapes: I item rows (0 out of vocabulary, 1 start marker, then the catalogue), M metadata columns, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.vocabulary import OUT_OF_VOCABULARY

INITIAL_STD = 0.02


class ItemTower(nn.Module):
    """vector(i) = id(i) + mean over i's metadata values of value(m).

    Metadata lets titles with few events borrow from titles like them; the id embedding holds what is left.

    Args:
        feature_rows: `[I, M]` int64, rows of the joint metadata table; 0 where an item has no value. Kept as a
            buffer, so that a saved model carries its catalogue.
        num_feature_rows: rows of the joint metadata table, row 0 (padding) included.
        width: D.
    """

    feature_rows: Tensor

    def __init__(self, feature_rows: Tensor, num_feature_rows: int, width: int) -> None:
        super().__init__()
        if feature_rows.dim() != 2 or feature_rows.shape[1] < 1:
            raise ValueError(
                f"feature_rows must have shape [I, M] with M >= 1, got {tuple(feature_rows.shape)}"
            )
        self.register_buffer("feature_rows", feature_rows.long())
        self.id_embedding = nn.Embedding(feature_rows.shape[0], width)
        self.feature_embedding = nn.EmbeddingBag(num_feature_rows, width, mode="mean", padding_idx=0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small normal values; the out-of-vocabulary row is zero, so that an unknown item says nothing."""
        nn.init.normal_(self.id_embedding.weight, std=INITIAL_STD)
        nn.init.normal_(self.feature_embedding.weight, std=INITIAL_STD)
        with torch.no_grad():
            self.id_embedding.weight[OUT_OF_VOCABULARY].zero_()
            self.feature_embedding.weight[0].zero_()

    def forward(self) -> Tensor:
        """Vectors of all items, `[I, D]`."""
        return self.id_embedding.weight + self.feature_embedding(self.feature_rows)
