"""Logged requests on disk: requests.parquet, or a folder of shards, read a part of a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import DataError

FILE, FOLDER = "requests.parquet", "requests"
BATCH_REQUESTS = 4_096
"""Requests in memory at a time: what a row group of any size is read in."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file.

    Attributes:
        path: of the file.
        number: of the row group, from 0.
        num_rows: requests in it.
    """

    path: Path
    number: int
    num_rows: int

    def __str__(self) -> str:
        return f"{self.path}: row group {self.number}"


def request_files(folder: Path) -> list[Path]:
    """The files of a dataset's logged requests, in the order of their names.

    Raises:
        DataError: there is none, or both a file and a folder.
    """
    file, shards = folder / FILE, folder / FOLDER
    if file.exists() and shards.exists():
        raise DataError(f"{folder}: has both {FILE} and {FOLDER}/; keep one of them")
    if file.is_file():
        return [file]
    # Several engines write a folder of shards under the name that a file would have.
    shards = file if file.is_dir() else shards
    files = sorted(shards.glob("*.parquet"))
    if not files:
        raise DataError(f"{file}: not found, nor shards {folder / FOLDER}/*.parquet; the tasks are logged")
    return files


def open_shard(
    path: Path, columns: Sequence[str], like: pa.Schema | None
) -> tuple[pa.Schema, list[RowGroup]]:
    """Columns and row groups of a file.

    Args:
        path: of the file.
        columns: that it must have.
        like: the columns of another shard, which this one's must be like.

    Raises:
        DataError: it is unreadable (truncated), lacks a column, or a column's type changed; names it.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None
    for column in columns:
        if column not in schema.names:
            has = ", ".join(schema.names)
            raise DataError(f"{path}: no column {column!r}, which schema.toml asks for; it has {has}")
        if like is not None and _kind(schema.field(column).type) != _kind(like.field(column).type):
            raise DataError(
                f"{path}: column {column!r}: is {schema.field(column).type} here and"
                f" {like.field(column).type} in the shards before; a column is of one kind in all of them"
            )
    groups = [
        RowGroup(path, number, metadata.row_group(number).num_rows)
        for number in range(metadata.num_row_groups)
    ]
    return schema, groups


def read_batches(row_group: RowGroup, columns: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Requests of a row group, some at a time, with the number of the first.

    Raises:
        DataError: the file is gone or damaged; names it and the row group.
    """
    first = 0
    wanted = list(dict.fromkeys(columns))
    try:
        with pq.ParquetFile(row_group.path) as file:
            for batch in file.iter_batches(BATCH_REQUESTS, row_groups=[row_group.number], columns=wanted):
                frame = pl.from_arrow(pa.Table.from_batches([batch]))
                assert isinstance(frame, pl.DataFrame)
                yield first, frame.select(wanted)
                first += frame.height
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{row_group}: not readable: {error}") from None


def _kind(column: pa.DataType) -> str:
    """What two shards must agree in: a width of numbers may change, text and numbers can't."""
    types = pa.types
    if types.is_list(column) or types.is_large_list(column) or types.is_fixed_size_list(column):
        return f"list of {_kind(column.value_type)}"
    if types.is_dictionary(column):
        return _kind(column.value_type)
    if types.is_string(column) or types.is_large_string(column) or types.is_string_view(column):
        return "text"
    if types.is_integer(column) or types.is_floating(column) or types.is_boolean(column):
        return "number"
    return str(column)
