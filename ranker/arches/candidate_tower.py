"""The candidate tower: one vector per candidate, from the item alone.

Shapes: C candidates over the batch, I item rows, W id columns, X dense columns, D decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.item_tower import ItemVectors
from foundation.model import unit
from ranker.arches.dense import DenseArch
from ranker.arches.sparse import SparseArch
from ranker.features.item_features import ItemFeatures


class CandidateTower(nn.Module):
    """`[unit(item vector) ; pooled sparse features ; dense features]` of each candidate.

    Features of an item are looked up inside, from tables saved with the model, so that a request carries ids
    only. A candidate's vector depends on its item row and on nothing else.

    Args:
        sparse: embeddings of the sparse item features.
        features: the catalogue's static features, kept as buffers.
        item_width: D, width of the item vectors that come from the decoder's item tower; 0 without one.
        dense_widths: of the layers over the dense features, see `DenseArch`.
    """

    item_sparse: Tensor
    item_dense: Tensor

    def __init__(
        self,
        sparse: SparseArch,
        features: ItemFeatures,
        item_width: int,
        dense_widths: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        assert features.sparse.shape[1] == sparse.num_columns, (features.sparse.shape, sparse.num_columns)
        self.sparse: nn.Module = sparse  # serving swaps it
        self.register_buffer("item_sparse", features.sparse)
        self.register_buffer("item_dense", features.dense)
        self.dense = DenseArch(features.dense.shape[1], dense_widths)
        self.width = item_width + sparse.width + self.dense.width

    def forward(self, item_rows: Tensor, items: ItemVectors | None) -> Tensor:
        """Vectors of candidates.

        Args:
            item_rows: `[C]` int64.
            items: from the profile tower's item tower; None without one.

        Returns:
            `[C, D_candidate]`.
        """
        parts = [
            self.sparse(self.item_sparse.index_select(0, item_rows)),
            self.dense(self.item_dense.index_select(0, item_rows)),
        ]
        if items is not None:
            parts.insert(0, unit(items.vectors.index_select(0, item_rows)))
        return torch.cat(parts, dim=1)
