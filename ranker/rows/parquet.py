"""Request rows as Parquet: one row is one request, with its history and its candidates as lists.

Ids and table rows are int32, times int64, labels int8 (-1: no label). What has several columns per event or candidate
lies row-major in one list, and its width in the file's key-value metadata. So nothing is repeated per candidate on
disk either.

Shapes: B requests, T history events over the batch, C candidates over the batch, N tasks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.joint_table import PADDING_ROW
from foundation.tokens import EventIds
from foundation.vocabulary import OUT_OF_VOCABULARY
from ranker.features.candidate_features import CandidateColumns
from ranker.features.inputs import ProfileFeatures, TokenizedHistories
from ranker.rows.rows import Rows

NO_LABEL = -1
_WIDTHS_KEY = b"marquee.widths"


@dataclass(frozen=True)
class Widths:
    """Columns per event, profile and candidate, and tasks: what tells a flat list's shape."""

    request_side: int
    outcome_side: int
    profile_sparse: int
    profile_dense: int
    candidate_sparse: int
    candidate_dense: int
    tasks: int

    @classmethod
    def of(cls, rows: Rows) -> Widths:
        """Those of rows."""
        events, profile = rows.histories.history, rows.histories.profile
        arrays = (events.request_side, events.outcome_side, *profile, *rows.candidates, rows.labels)
        return cls(*(array.shape[1] for array in arrays))


_INT32, _INT64, _FLOAT, _INT8 = pa.int32(), pa.int64(), pa.float32(), pa.int8()
_COLUMNS: dict[str, pa.DataType] = {
    "profile_id": _INT64,
    "num_events_before": _INT64,
    "history_item": pa.list_(_INT32),
    "history_timestamp": pa.list_(_INT64),
    "history_request_side": pa.list_(_INT32),
    "history_outcome_side": pa.list_(_INT32),
    "request_timestamp": _INT64,
    "request_side": pa.list_(_INT32),
    "next_item": _INT32,
    "next_timestamp": _INT64,
    "next_request_side": pa.list_(_INT32),
    "next_outcome_side": pa.list_(_INT32),
    "profile_sparse": pa.list_(_INT32),
    "profile_dense": pa.list_(_FLOAT),
    "candidate_item": pa.list_(_INT32),
    "candidate_sparse": pa.list_(_INT32),
    "candidate_dense": pa.list_(_FLOAT),
    "labels": pa.list_(_INT8),
}


def rows_schema(widths: Widths) -> pa.Schema:
    """The Parquet schema of rows of these widths, which it carries as metadata."""
    return pa.schema(list(_COLUMNS.items()), {_WIDTHS_KEY: json.dumps(asdict(widths)).encode()})


def to_table(rows: Rows) -> pa.Table:
    """Rows as a table of B rows; `from_table` is its inverse."""
    of = rows.histories
    one = np.arange(len(rows) + 1)
    labels = np.where(rows.mask, rows.labels, NO_LABEL)
    flat: dict[str, tuple[NDArray, NDArray | None]] = {
        "profile_id": (rows.profile_id, None),
        "num_events_before": (of.num_events_before, None),
        "history_item": (of.history.item, of.history_offsets),
        "history_timestamp": (of.history.timestamp, of.history_offsets),
        "history_request_side": (of.history.request_side, of.history_offsets),
        "history_outcome_side": (of.history.outcome_side, of.history_offsets),
        "request_timestamp": (of.request.timestamp, None),
        "request_side": (of.request.request_side, one),
        "next_item": (rows.next_event.item, None),
        "next_timestamp": (rows.next_event.timestamp, None),
        "next_request_side": (rows.next_event.request_side, one),
        "next_outcome_side": (rows.next_event.outcome_side, one),
        "profile_sparse": (of.profile.sparse, one),
        "profile_dense": (of.profile.dense, one),
        "candidate_item": (rows.item_rows, rows.candidate_offsets),
        "candidate_sparse": (rows.candidates.sparse, rows.candidate_offsets),
        "candidate_dense": (rows.candidates.dense, rows.candidate_offsets),
        "labels": (labels, rows.candidate_offsets),
    }
    arrays = [_arrow(*flat[name], kind) for name, kind in _COLUMNS.items()]
    return pa.Table.from_arrays(arrays, schema=rows_schema(Widths.of(rows)))


def from_table(table: pa.Table, widths: Widths) -> Rows:
    """The rows of a table.

    Raises:
        DataError: a column is missing or of another type, or lists don't fit each other or `widths`; names it.
    """
    read = _Reader(table)
    history_item, history_offsets = read.lists("history_item")
    candidate_item, candidate_offsets = read.lists("candidate_item")
    num_rows = table.num_rows
    one = np.arange(num_rows + 1)
    labels = read.matrix("labels", candidate_offsets, widths.tasks)
    request = EventIds(
        np.full(num_rows, OUT_OF_VOCABULARY, dtype=np.int64),
        read.flat("request_timestamp"),
        read.matrix("request_side", one, widths.request_side),
        np.full((num_rows, widths.outcome_side), PADDING_ROW, dtype=np.int64),
    )
    histories = TokenizedHistories(
        EventIds(
            history_item,
            read.matrix("history_timestamp", history_offsets, 1)[:, 0],
            read.matrix("history_request_side", history_offsets, widths.request_side),
            read.matrix("history_outcome_side", history_offsets, widths.outcome_side),
        ),
        history_offsets,
        read.flat("num_events_before"),
        request,
        ProfileFeatures(
            read.matrix("profile_sparse", one, widths.profile_sparse),
            read.matrix("profile_dense", one, widths.profile_dense),
        ),
    )
    return Rows(
        read.flat("profile_id"),
        histories,
        EventIds(
            read.flat("next_item"),
            read.flat("next_timestamp"),
            read.matrix("next_request_side", one, widths.request_side),
            read.matrix("next_outcome_side", one, widths.outcome_side),
        ),
        candidate_offsets,
        candidate_item,
        CandidateColumns(
            read.matrix("candidate_sparse", candidate_offsets, widths.candidate_sparse),
            read.matrix("candidate_dense", candidate_offsets, widths.candidate_dense),
        ),
        np.maximum(labels, 0).astype(np.float32),
        labels != NO_LABEL,
    )


def table_widths(schema: pa.Schema) -> Widths:
    """The widths that a schema carries.

    Raises:
        DataError: it carries none, or others than this code knows.
    """
    text = (schema.metadata or {}).get(_WIDTHS_KEY)
    plain = {} if text is None else json.loads(text)
    if set(plain) != {field.name for field in fields(Widths)}:
        raise DataError("no marquee.widths in its metadata: not a file of request rows; make the rows anew")
    return Widths(**plain)


def read_row_group(path: Path, row_group: int, widths: Widths) -> Rows:
    """The rows of one row group of a shard.

    Raises:
        DataError: the shard is missing, truncated or changed; names file and row group.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = table_widths(file.schema_arrow)
            if found != widths:
                raise DataError(f"has widths {asdict(found)}, the manifest says {asdict(widths)}")
            if row_group >= file.num_row_groups:
                raise DataError(f"has {file.num_row_groups} row groups")
            return from_table(file.read_row_group(row_group), widths)
    except FileNotFoundError:
        raise DataError(f"{path}: row group {row_group}: not found, though manifest.json lists it") from None
    except (DataError, pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: row group {row_group}: not readable as request rows: {error}; make the rows anew"
        ) from None


class _Reader:
    """Columns of a table as arrays."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def flat(self, name: str) -> NDArray[np.int64]:
        """`[B]`."""
        return self._column(name).to_numpy(zero_copy_only=False).astype(np.int64)

    def lists(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Values one after another, and offsets `[B + 1]`."""
        values, offsets = self._lists(name)
        return values.astype(np.int64), offsets

    def matrix(self, name: str, offsets: NDArray[np.int64], width: int) -> NDArray:
        """`[offsets[-1], width]`, int64 or float32; the list of a row holds `width` values for each of its own."""
        values, found = self._lists(name)
        if not np.array_equal(found, offsets * width):
            row = int((np.diff(found) != np.diff(offsets) * width).argmax())
            raise DataError(
                f"column {name!r}: row {row} holds {np.diff(found)[row]} values where"
                f" {np.diff(offsets)[row] * width} belong"
            )
        dtype = np.float32 if values.dtype == np.float32 else np.int64
        return values.reshape(int(offsets[-1]), width).astype(dtype)

    def _lists(self, name: str) -> tuple[NDArray, NDArray[np.int64]]:
        column = self._column(name)
        offsets = column.offsets.to_numpy().astype(np.int64)
        return column.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]

    def _column(self, name: str) -> pa.Array:
        if name not in self._table.column_names:
            raise DataError(f"no column {name!r}")
        column, expected = self._table.column(name), _COLUMNS[name]
        if column.type != expected or column.null_count:
            raise DataError(
                f"column {name!r}: is {column.type} with {column.null_count} nulls, must be {expected}"
            )
        return column.combine_chunks()


def _arrow(values: NDArray, offsets: NDArray | None, kind: pa.DataType) -> pa.Array:
    if offsets is None:
        return pa.array(values.astype(kind.to_pandas_dtype()))
    width = values.shape[1] if values.ndim == 2 else 1
    flat = np.ascontiguousarray(values).reshape(-1).astype(kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array((offsets * width).astype(np.int32)), pa.array(flat))
