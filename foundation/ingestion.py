"""From columns of Parquet files to raw values, with errors that name file and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from foundation.errors import DataError
from foundation.raw_values import NO_NUMBER, NO_VALUE, hash_strings
from foundation.schema import Feature

LATEST_SECOND = 10**11
"""In the year 5138: a larger timestamp is in milliseconds or finer."""

_TEXT = (pl.String, pl.Categorical, pl.Enum)


class Table:
    """A Parquet file in memory whose columns are asked for by name and come out as raw values."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Reads the given columns of a Parquet file.

        Raises:
            DataError: the file is missing or unreadable, or has no such column.
        """
        self.path: Path | str = path
        try:
            present = pl.read_parquet_schema(path)
            absent = [column for column in columns if column not in present]
            if absent:
                has = ", ".join(present)
                raise DataError(f"{path}: no column {absent[0]!r}, which schema.toml asks for; it has {has}")
            self.frame = pl.read_parquet(path, columns=list(dict.fromkeys(columns)))
        except FileNotFoundError:
            raise DataError(f"{path}: not found") from None
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet file: {error}") from None

    @classmethod
    def of_frame(cls, where: str, frame: pl.DataFrame) -> Table:
        """A part of a file that is in memory already; `where` is what errors call it."""
        table = cls.__new__(cls)
        table.path, table.frame = where, frame
        return table

    def __len__(self) -> int:
        return self.frame.height

    def fail(self, column: str, problem: str) -> DataError:
        """The error to raise about a column of this file."""
        return DataError(f"{self.path}: column {column!r}: {problem}")

    def ids(self, column: str) -> np.ndarray:
        """Integers or strings as int64 ids `[rows]`; a null is an error."""
        values = self.frame[column]
        self._no_nulls(values)
        return self._int64(values, "ids are integers or strings")

    def names(self, column: str, rows: np.ndarray | None = None) -> list[str]:
        """A column's values as text, for people, of all rows or the given ones; a null is an empty string."""
        values = self.frame[column] if rows is None else self.frame[column].gather(rows)
        return values.cast(pl.String).fill_null("").to_list()

    def timestamps(self, column: str, nullable: bool = False) -> np.ndarray:
        """Unix seconds, int64 `[rows]`, from integers, dates or datetimes (cut to seconds).

        A null is an error, or `NO_VALUE` where the column is nullable.
        """
        values = self.frame[column]
        if not nullable:
            self._no_nulls(values)
        elif isinstance(values.dtype, pl.Null):
            return np.full(len(values), NO_VALUE, dtype=np.int64)
        if isinstance(values.dtype, pl.Datetime | pl.Date):
            return values.dt.epoch("s").cast(pl.Int64).fill_null(NO_VALUE).to_numpy(writable=True)
        if not values.dtype.is_integer():
            raise self.fail(column, f"is {values.dtype}; timestamps are whole unix seconds or datetimes")
        seconds = self._int64(values, "timestamps are whole unix seconds")
        if seconds.max(initial=NO_VALUE) > LATEST_SECOND:
            raise self.fail(column, f"holds {seconds.max()}; timestamps are unix seconds, not finer units")
        return seconds

    def feature(self, feature: Feature) -> np.ndarray:
        """Raw values of a declared facet or feature.

        Returns:
            int64 `[rows]` (categorical), float32 `[rows]` (numeric; seconds of a duration) or
            int64 `[rows, max_values]` (multi).
        """
        if feature.kind == "duration":
            return self._durations(self.frame[feature.column])
        if feature.kind == "numeric":
            return self._float32(self.frame[feature.column])
        if feature.kind == "multi":
            return self._lists(feature.column, feature.max_values)
        expected = "a categorical column holds integers, strings or booleans"
        return self._int64(self.frame[feature.column], expected)

    def id_lists(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """A list column of ids: values int64 `[total]` and lengths int64 `[rows]`; a null is an error."""
        values = self._list_column(column)
        self._no_nulls(values)
        flat = values.explode(empty_as_null=False)
        self._no_nulls(flat)
        return self._int64(flat, "ids are integers or strings"), values.list.len().cast(pl.Int64).to_numpy()

    def number_lists(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """A list column of numbers: values float32 `[total]` (null: `NO_NUMBER`), lengths int64 `[rows]`."""
        values = self._list_column(column)
        self._no_nulls(values)
        return self._float32(values.explode(empty_as_null=False)), values.list.len().cast(pl.Int64).to_numpy()

    def value_lists(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """A list column of categories: values int64 `[total]` (null: `NO_VALUE`), lengths int64 `[rows]`."""
        values = self._list_column(column)
        self._no_nulls(values)
        flat = self._int64(
            values.explode(empty_as_null=False), "its values are integers, strings or booleans"
        )
        return flat, values.list.len().cast(pl.Int64).to_numpy()

    def embeddings(self, column: str) -> np.ndarray:
        """A list column of equally many numbers in every row, float32 `[rows, E]`; a null row is zeros."""
        values = self._list_column(column)
        there = values.is_not_null().to_numpy()
        flat = self._float32(values.drop_nulls().explode(empty_as_null=False))
        lengths = values.list.len().drop_nulls().cast(pl.Int64).to_numpy()
        width = int(lengths[0]) if len(lengths) else 0
        if not width:
            raise self.fail(column, "holds no numbers; an embedding is a list of at least one")
        rows = np.flatnonzero(there)
        if (lengths != width).any():
            worst = int((lengths != width).argmax())
            raise self.fail(
                column,
                f"row {rows[worst]} holds {lengths[worst]} numbers and row {rows[0]} {width}; "
                "every row needs as many, or null",
            )
        missing = flat == NO_NUMBER
        if missing.any():
            row = rows[int(missing.argmax()) // width]
            raise self.fail(column, f"row {row} holds a null or NaN; an embedding has a number everywhere")
        embeddings = np.zeros((len(values), width), dtype=np.float32)
        embeddings[there] = flat.reshape(-1, width)
        return embeddings

    def _durations(self, values: pl.Series) -> np.ndarray:
        if isinstance(values.dtype, pl.Duration):
            values = values.dt.total_microseconds() / 1e6
        seconds = self._float32(values)
        negative = (seconds < 0) & (seconds != NO_NUMBER)
        if negative.any():
            row = int(negative.argmax())
            raise self.fail(
                values.name,
                f"has {negative.sum()} negative durations, the first is {seconds[row]:g} in row {row}; "
                "durations are seconds from 0 on, and null where there is none",
            )
        return seconds

    def _no_nulls(self, values: pl.Series) -> None:
        if values.null_count():
            row = int(values.is_null().arg_true()[0])
            raise self.fail(
                values.name, f"has {values.null_count()} nulls, the first in row {row}; every row needs one"
            )

    def _int64(self, values: pl.Series, expected: str) -> np.ndarray:
        if isinstance(values.dtype, pl.Null):
            return np.full(len(values), NO_VALUE, dtype=np.int64)
        if values.dtype in _TEXT:
            texts = values.cast(pl.String)
            known = texts.drop_nulls().unique()
            hashes = pl.Series(hash_strings(known.to_list()))
            values = texts.replace_strict(known, hashes, default=None, return_dtype=pl.Int64)
        elif not (values.dtype.is_integer() or values.dtype == pl.Boolean):
            raise self.fail(values.name, f"is {values.dtype}; {expected}")
        try:
            return values.cast(pl.Int64).fill_null(NO_VALUE).to_numpy(writable=True)
        except pl.exceptions.InvalidOperationError:
            raise self.fail(
                values.name, "a value doesn't fit 64 signed bits; use strings for such ids"
            ) from None

    def _float32(self, values: pl.Series) -> np.ndarray:
        numeric = values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null)
        if not numeric:
            raise self.fail(values.name, f"is {values.dtype}; a numeric column holds numbers")
        numbers = values.cast(pl.Float32)
        infinite = numbers.is_infinite().fill_null(False)
        if infinite.any():
            row = int(infinite.arg_true()[0])
            raise self.fail(
                values.name,
                f"has {infinite.sum()} infinite values (as float32), the first is value {row}; "
                "numbers are finite, and null where there is none",
            )
        return numbers.fill_nan(None).fill_null(float(NO_NUMBER)).to_numpy(writable=True)

    def _list_column(self, column: str) -> pl.Series:
        values = self.frame[column]
        if isinstance(values.dtype, pl.Array):
            values = values.arr.to_list()
        if not isinstance(values.dtype, pl.List):
            raise self.fail(column, f"is {values.dtype}; it must hold a list in every row")
        return values

    def _lists(self, column: str, max_values: int) -> np.ndarray:
        """The first `max_values` of each list, padded with NO_VALUE; a null list is an empty one."""
        lists = self._list_column(column).list.drop_nulls().list.head(max_values)
        lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        flat = self._int64(
            lists.drop_nulls().explode(empty_as_null=False), "its values are integers or strings"
        )
        padded = np.full((len(lengths), max_values), NO_VALUE, dtype=np.int64)
        padded[np.arange(max_values) < lengths[:, None]] = flat
        return padded
