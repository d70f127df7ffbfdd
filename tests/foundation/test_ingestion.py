"""List columns, whatever their lengths and gaps, come out as plain Python would have them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.ingestion import Table
from foundation.raw_values import NO_NUMBER, NO_VALUE, hash_string
from foundation.schema import Feature

TEXTS = st.one_of(st.none(), st.sampled_from(["a", "b", "ç", ""]))
NUMBERS = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32))


def table(column: list[object], dtype: pl.DataType) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        pl.DataFrame({"x": pl.Series(column, dtype=dtype)}).write_parquet(path)
        return Table(path, ["x"])


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.lists(TEXTS, max_size=5)), max_size=12), st.integers(1, 4))
def test_multi_valued_features_keep_the_first_values_that_are_there(
    rows: list[list[str | None] | None], max_values: int
) -> None:
    read = table([*rows], pl.List(pl.String())).feature(Feature("x", "multi", "x", max_values=max_values))
    kept = [[hash_string(text) for text in row or [] if text is not None][:max_values] for row in rows]
    expected = [row + [NO_VALUE] * (max_values - len(row)) for row in kept]
    assert read.shape == (len(rows), max_values)
    assert read.tolist() == expected


@settings(deadline=None)
@given(st.lists(st.lists(NUMBERS, max_size=5), max_size=12))
def test_lists_of_numbers_keep_their_places(rows: list[list[float | None]]) -> None:
    values, lengths = table([*rows], pl.List(pl.Float64())).number_lists("x")
    flat = [NO_NUMBER if number is None else number for row in rows for number in row]
    np.testing.assert_array_equal(values, np.array(flat, dtype=np.float32))
    assert lengths.tolist() == [len(row) for row in rows]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63) + 1, 2**63 - 1), max_size=5), max_size=12))
def test_lists_of_ids_keep_their_places(rows: list[list[int]]) -> None:
    values, lengths = table([*rows], pl.List(pl.Int64())).id_lists("x")
    assert values.tolist() == [value for row in rows for value in row]
    assert lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), 1e39])
def test_an_infinite_number_is_named(number: float) -> None:
    said = r"t\.parquet: column 'x': has 1 infinite values \(as float32\), the first is value 2"
    with pytest.raises(DataError, match=said):
        table([0.5, None, number, float("nan")], pl.Float64()).feature(Feature("x", "numeric", "x"))


@pytest.mark.parametrize("rows", [[[1], None], [[1, None], []]])
def test_a_null_among_candidates_is_named(rows: list[object]) -> None:
    with pytest.raises(DataError, match=r"t\.parquet: column 'x': has 1 nulls, the first in row 1"):
        table(rows, pl.List(pl.Int64())).id_lists("x")
