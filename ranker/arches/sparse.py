"""Sparse features: an EmbeddingBagCollection over fixed-width id columns, and its twin for export.

Shapes: B rows (requests or candidates), W id columns, E width of all embeddings together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ranker.features.columns import SparseColumn, total_columns, total_dim

INITIAL_BOUND = 0.05
_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


class SparseArch(nn.Module):
    """Pooled embeddings of named id columns; an empty bag is zero, and row 0 starts at zero.

    Inputs have a fixed width, because a request's features do; the KeyedJaggedTensor that TorchRec shards by
    is built inside, so none crosses the module's boundary. `DistributedModelParallel` replaces `.bags` by its
    sharded counterpart.
    """

    def __init__(self, columns: Sequence[SparseColumn]) -> None:
        super().__init__()
        if not columns:
            raise ValueError("SparseArch needs at least one sparse feature; columns is empty")
        self.columns = tuple(columns)
        self.num_columns = total_columns(self.columns)
        self.width = total_dim(self.columns)
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=table_name(column),
                    feature_names=[column.name],
                    num_embeddings=column.num_rows,
                    embedding_dim=column.dim,
                    pooling=_POOLING[column.pooling],
                    # Not applied afterwards: on a CPU a sharded collection draws its weights anew.
                    init_fn=initialise_table,
                )
                for column in self.columns
            ]
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Look up `ids` `[B, W]` int64 (-1 = no value); returns `[B, E]`, features as in `columns`."""
        assert ids.shape[1] == self.num_columns, (ids.shape, self.num_columns)
        pooled = self.bags(keyed_jagged(ids, self.columns))
        # By name: a sharded collection returns its features in the order of its shards.
        return torch.cat([pooled[column.name] for column in self.columns], dim=1)


def table_name(column: SparseColumn) -> str:
    """The table of a feature; not the bare name, which may be one that a module keeps for itself ("type")."""
    return f"{column.name}_table"


@torch.no_grad()
def initialise_table(weight: Tensor) -> Tensor:
    """Small uniform values, but for row 0: out of vocabulary says nothing until training has seen it."""
    weight.uniform_(-INITIAL_BOUND, INITIAL_BOUND)
    weight[:1].zero_()
    return weight


def keyed_jagged(ids: Tensor, columns: Sequence[SparseColumn]) -> KeyedJaggedTensor:
    """Drop the absent ids (-1) of `[B, W]` and lay the rest out feature by feature, for TorchRec."""
    values: list[Tensor] = []
    lengths: list[Tensor] = []
    for column in columns:
        bag = ids[:, column.first : column.first + column.num_columns]
        present = bag >= 0
        values.append(bag[present])
        lengths.append(present.sum(dim=1))
    return KeyedJaggedTensor(
        keys=[column.name for column in columns], values=torch.cat(values), lengths=torch.cat(lengths)
    )


class PaddedSparseArch(nn.Module):
    """The same embeddings without a KeyedJaggedTensor: masked lookups of fixed shape, for `torch.export`."""

    def __init__(self, columns: Sequence[SparseColumn]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.num_columns = total_columns(self.columns)
        self.width = total_dim(self.columns)
        self.tables = nn.ParameterList(torch.zeros(column.num_rows, column.dim) for column in self.columns)

    @classmethod
    @torch.no_grad()
    def from_sparse(cls, sparse: SparseArch) -> PaddedSparseArch:
        """A twin with copies of an unsharded `SparseArch`'s weights."""
        twin = cls(sparse.columns)
        for column, table in zip(sparse.columns, twin.tables, strict=True):
            table.copy_(sparse.bags.embedding_bags[table_name(column)].weight)
        return twin

    def forward(self, ids: Tensor) -> Tensor:
        """As `SparseArch.forward`."""
        bags = [
            _padded_bag(ids[:, column.first : column.first + column.num_columns], table, column)
            for column, table in zip(self.columns, self.tables, strict=True)
        ]
        return torch.cat(bags, dim=1)


def _padded_bag(ids: Tensor, table: Tensor, column: SparseColumn) -> Tensor:
    """Pool `[B, num_columns]` ids of one feature into `[B, dim]`."""
    present = ids >= 0
    rows = nn.functional.embedding(ids.clamp(min=0), table)
    total = (rows * present.unsqueeze(-1)).sum(dim=1)
    if column.pooling == "sum":
        return total
    return total / present.sum(dim=1, keepdim=True).clamp(min=1)
