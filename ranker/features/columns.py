"""Named id columns: how sparse features lie in one fixed-width `[B, W]` matrix of ids.

Shapes: B rows (requests or candidates), W id columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from foundation.errors import DataError

Pooling = Literal["sum", "mean"]


@dataclass(frozen=True)
class SparseField:
    """A sparse feature before it has a place and a width.

    Attributes:
        name: unique within its side of the model.
        num_columns: ids a bag holds at most.
        num_rows: rows of its table; ids lie in `[0, num_rows)`, or are -1 for "no value".
        pooling: how a bag's embeddings become one.
        of_items: whether its ids are item rows, which get the wider embedding.
    """

    name: str
    num_columns: int
    num_rows: int
    pooling: Pooling = "mean"
    of_items: bool = False


@dataclass(frozen=True)
class SparseColumn:
    """A sparse feature: ids of columns `[first, first + num_columns)` pool into one vector of width `dim`."""

    name: str
    first: int
    num_columns: int
    pooling: Pooling
    num_rows: int
    dim: int

    def __post_init__(self) -> None:
        if self.pooling not in ("sum", "mean"):
            raise ValueError(
                f"sparse feature {self.name!r}: pooling is {self.pooling!r}; use 'sum' or 'mean'"
            )
        if self.num_columns < 1 or self.num_rows < 1:
            raise ValueError(
                f"sparse feature {self.name!r} has {self.num_columns} columns and {self.num_rows} rows;"
                " both must be at least 1"
            )
        if self.dim < 4 or self.dim % 4:
            raise ValueError(
                f"sparse feature {self.name!r}: dim is {self.dim}; FBGEMM's fused tables need a multiple of 4"
            )


def place(fields: Iterable[SparseField], dim: int, item_dim: int) -> tuple[SparseColumn, ...]:
    """Lay fields side by side in their order, with embeddings of width `dim`, or `item_dim` for item ids.

    Raises:
        DataError: two fields have the same name: a declared feature is called like one of the ranker's own.
    """
    columns: list[SparseColumn] = []
    first = 0
    for field in fields:
        if any(column.name == field.name for column in columns):
            raise DataError(
                f"schema.toml: feature {field.name!r}: the ranker has an embedding table of this name already; give"
                " the feature another name, and its column with column = …"
            )
        width = item_dim if field.of_items else dim
        columns.append(
            SparseColumn(field.name, first, field.num_columns, field.pooling, field.num_rows, width)
        )
        first += field.num_columns
    return tuple(columns)


def total_columns(columns: Iterable[SparseField | SparseColumn]) -> int:
    """W, the id columns of all features together."""
    return sum(column.num_columns for column in columns)


def total_dim(columns: Iterable[SparseColumn]) -> int:
    """Width of the concatenated embeddings."""
    return sum(column.dim for column in columns)
