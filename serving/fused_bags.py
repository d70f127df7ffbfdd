"""Embeddings of padded id columns by one operator, in the place of the ranker's own lookups.

Shapes: R rows (tokens, requests or candidates), W id columns, E width of all embeddings together.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ranker.arches.candidate_features import CandidateFeatureArch
from ranker.arches.sparse import PaddedSparseArch
from serving.kernels.bags.ops import pool_bags, profile_vector


class FusedBags(nn.Module):
    """`PaddedSparseArch` by `marquee::pool_bags`; its tables keep their names.

    Args:
        tables: of the features.
        columns: how many id columns each feature has.
        means: whether it is averaged, not summed.
    """

    def __init__(self, tables: Sequence[nn.Parameter], columns: Sequence[int], means: Sequence[bool]) -> None:
        super().__init__()
        self.tables = nn.ParameterList(tables)
        self._columns, self._means = tuple(columns), tuple(means)

    @classmethod
    def from_sparse(cls, sparse: PaddedSparseArch) -> FusedBags:
        """With the tables of `sparse` themselves."""
        columns = sparse.columns
        means = [column.pooling == "mean" for column in columns]
        return cls(list(sparse.tables), [column.num_columns for column in columns], means)

    def forward(self, ids: Tensor) -> Tensor:
        """`[R, W]` int64, -1 where there is no value, to `[R, E]`."""
        return pool_bags(ids, list(self.tables), self._columns, self._means, 0)

    def beside(self, ids: Tensor, dense: Tensor) -> Tensor:
        """These embeddings and dense features `[R, X]` behind them."""
        return pool_bags(ids, list(self.tables), self._columns, self._means, 0, dense)

    def profile_vector(self, hidden: Tensor, least_norm: float, ids: Tensor, dense: Tensor) -> Tensor:
        """These embeddings between a unit vector and dense features, see `serving.kernels.bags.ops.profile_vector`."""
        return profile_vector(hidden, least_norm, ids, list(self.tables), self._columns, self._means, dense)


class FusedCandidateFeatures(nn.Module):
    """`CandidateFeatureArch` by the same operator.

    Args:
        features: whose sparse features are fused already.
    """

    def __init__(self, features: CandidateFeatureArch) -> None:
        super().__init__()
        assert isinstance(features.sparse, FusedBags)
        self.sparse = features.sparse
        self.dense = features.dense

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor:
        """`[C, W]` and `[C, X]` to `[C, F]`."""
        return self.sparse.beside(sparse, self.dense(dense))


class FusedFacets(nn.Module):
    """A token's facets, summed, by the same operator; row 0 is padding and adds nothing.

    Args:
        facets: `FoundationModel.facet_embedding`.
    """

    def __init__(self, facets: nn.EmbeddingBag) -> None:
        super().__init__()
        assert facets.mode == "sum" and facets.padding_idx == 0, facets
        self.weight = facets.weight

    def forward(self, ids: Tensor) -> Tensor:
        """`[R, W]` int64 to `[R, E]`."""
        return pool_bags(ids, [self.weight], [ids.shape[1]], [False], 1)
