"""Features of a candidate in one request, embedded: the part of the candidate side that no table can hold.

Shapes: C candidates over the batch, W id columns, X dense columns, F width of all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.arches.dense import DenseArch
from ranker.arches.sparse import SparseArch
from ranker.features.candidate_features import CandidateFields
from ranker.features.columns import place


class CandidateFeatureArch(nn.Module):
    """`[pooled sparse features ; dense features]` of each candidate in its request.

    Args:
        fields: what the inputs hold; may be nothing.
        embedding_dim: width of a sparse feature's embedding.
        dense_widths: of the layers over the dense features, see `DenseArch`.
    """

    def __init__(
        self, fields: CandidateFields, embedding_dim: int, dense_widths: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        columns = place(fields.sparse, embedding_dim, embedding_dim)
        self.sparse: nn.Module | None = SparseArch(columns) if columns else None  # serving swaps it
        self.dense = DenseArch(fields.num_dense, dense_widths)
        self.width = (self.sparse.width if isinstance(self.sparse, SparseArch) else 0) + self.dense.width

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor | None:
        """`[C, W]` and `[C, X]` to `[C, F]`; None where there are no such features."""
        if self.sparse is None:
            return None
        return torch.cat((self.sparse(sparse), self.dense(dense)), dim=1)
