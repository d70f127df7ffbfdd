"""The candidate tower: one vector per candidate, from the item alone.

Shapes: C candidates over the batch, I item rows, W id columns, X dense columns, D decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.model import unit
from foundation.vocabulary import FIRST_KNOWN
from ranker.arches.dense import DenseArch
from ranker.arches.sparse import SparseArch
from ranker.features.item_features import ID_COLUMN, POPULARITY_COLUMN, ItemFeatures


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

    def forward(
        self, item_rows: Tensor, item_vectors: Tensor | None, never_seen: Tensor | None = None
    ) -> Tensor:
        """Vectors of candidates.

        Args:
            item_rows: `[C]` int64.
            item_vectors: `[C, D]`, from the profile tower's item tower; None without one.
            never_seen: `[C]` bool, candidates whose own id is hidden, and that are as unpopular as any.

        Returns:
            `[C, D_candidate]`.
        """
        sparse = self.item_sparse.index_select(0, item_rows)
        dense = self.item_dense.index_select(0, item_rows)
        if never_seen is not None:
            sparse[:, ID_COLUMN].masked_fill_(never_seen, -1)
            least = self.item_dense[FIRST_KNOWN:, POPULARITY_COLUMN].min()
            dense[:, POPULARITY_COLUMN].masked_fill_(never_seen, least)
        parts = [self.sparse(sparse), self.dense(dense)]
        if item_vectors is not None:
            parts.insert(0, unit(item_vectors))
        return torch.cat(parts, dim=1)
