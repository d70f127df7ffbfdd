"""Request rows survive Parquet, and a file that isn't what it was says where."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.tokens import EventIds
from ranker.features.candidate_features import CandidateColumns
from ranker.features.inputs import ProfileFeatures, TokenizedHistories
from ranker.rows.parquet import Widths, from_table, read_row_group, to_table
from ranker.rows.rows import Rows
from ranker.rows.writing import ShardWriter

WIDTHS = Widths(3, 2, 2, 1, 1, 2, 2)


def same(one: object, other: object) -> bool:
    """Whether two rows, or their parts, are equal to the bit, types included."""
    if isinstance(one, Rows):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, tuple):
        assert isinstance(other, tuple)
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    assert isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    return one.dtype == other.dtype and np.array_equal(one, other)


def random_rows(history: list[int], candidates: list[int], widths: Widths = WIDTHS, seed: int = 0) -> Rows:
    """Rows with these many events and candidates in each request."""
    rng = np.random.default_rng(seed)
    num_rows, num_events, num_candidates = len(history), sum(history), sum(candidates)

    def events(number: int) -> EventIds:
        return EventIds(
            rng.integers(0, 2**31 - 1, number),
            rng.integers(0, 2**40, number),
            rng.integers(0, 99, (number, widths.request_side)),
            rng.integers(0, 99, (number, widths.outcome_side)),
        )

    request = events(num_rows)
    request = request._replace(item=np.zeros_like(request.item), outcome_side=0 * request.outcome_side)
    mask = rng.random((num_candidates, widths.tasks)) < 0.7
    return Rows(
        rng.integers(-(2**62), 2**62, num_rows),
        TokenizedHistories(
            events(num_events),
            np.concatenate(([0], np.cumsum(history))).astype(np.int64),
            rng.integers(0, 99, num_rows),
            request,
            ProfileFeatures(
                rng.integers(-1, 99, (num_rows, widths.profile_sparse)),
                rng.standard_normal((num_rows, widths.profile_dense)).astype(np.float32),
            ),
        ),
        events(num_rows),
        np.concatenate(([0], np.cumsum(candidates))).astype(np.int64),
        rng.integers(0, 2**31 - 1, num_candidates),
        CandidateColumns(
            rng.integers(-1, 99, (num_candidates, widths.candidate_sparse)),
            rng.standard_normal((num_candidates, widths.candidate_dense)).astype(np.float32),
        ),
        (mask & (rng.random(mask.shape) < 0.5)).astype(np.float32),
        mask,
    )


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=6),
    widths=st.tuples(*[st.integers(0, 3)] * 6, st.integers(1, 3)),
)
def test_rows_survive_a_table(lengths: list[tuple[int, int]], widths: tuple[int, ...]) -> None:
    rows = random_rows([each[0] for each in lengths], [each[1] for each in lengths], Widths(*widths))
    assert same(from_table(to_table(rows), Widths(*widths)), rows)


def test_a_slice_of_a_table_gives_those_rows() -> None:
    rows = random_rows([3, 0, 2, 4], [1, 2, 0, 3])
    table = pa.concat_tables([to_table(rows), to_table(rows)])
    assert same(from_table(table.slice(2, 4), WIDTHS), rows.take(np.array([2, 3, 0, 1])))


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=2)


def test_row_groups_are_read_by_number(tmp_path: Path) -> None:
    rows = random_rows([3, 0, 2, 4], [1, 2, 0, 3])
    _write(tmp_path / "part.parquet", to_table(rows))
    assert same(read_row_group(tmp_path / "part.parquet", 1, WIDTHS), rows.take(np.array([2, 3])))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path, table: path.write_bytes(path.read_bytes()[:-40]), "not readable"),
        (lambda path, table: path.unlink(), "not found"),
        (lambda path, table: _write(path, table.drop_columns(["labels"])), "no column 'labels'"),
        (lambda path, table: _write(path, table.slice(0, 2)), "has 1 row groups"),
        (lambda path, table: _write(path, table.replace_schema_metadata(None)), "marquee.widths"),
        (
            lambda path, table: _write(path, to_table(random_rows([1], [1], Widths(4, 2, 2, 1, 1, 2, 2)))),
            "widths",
        ),
        (
            lambda path, table: _write(path, table.set_column(0, "profile_id", table["next_item"])),
            "'profile_id': is int32",
        ),
        (
            lambda path, table: _write(
                path,
                table.set_column(
                    table.column_names.index("labels"),
                    "labels",
                    pa.array([[1], [0], [1], [0]], pa.list_(pa.int8())),
                ),
            ),
            "column 'labels': row 0 holds 1 values where 0 belong",
        ),
    ],
)
def test_a_damaged_shard_is_named_with_its_row_group(tmp_path: Path, damage, said: str) -> None:
    path = tmp_path / "part.parquet"
    table = to_table(random_rows([3, 0, 2, 4], [1, 2, 0, 3]))
    _write(path, table)
    damage(path, table)
    with pytest.raises(DataError) as raised:
        read_row_group(path, 1, WIDTHS)
    assert f"{path}: row group 1: " in str(raised.value) and said in str(raised.value)


def test_a_value_that_changed_on_disk_is_not_trained_on(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "part.parquet", 2)
    writer.add(random_rows([3, 0, 2, 4], [1, 2, 0, 3]))
    record, path = writer.close(), tmp_path / "part.parquet"
    with pq.ParquetFile(path) as file:
        ids = file.metadata.row_group(1).column(0)
    end = ids.data_page_offset + ids.total_compressed_size
    content = bytearray(path.read_bytes())
    content[end - 5] ^= 1
    path.write_bytes(content)
    assert record.row_groups == (2, 2)
    read_row_group(path, 0, WIDTHS)
    with pytest.raises(DataError, match=r"row group 1: not readable as request rows: .*checksum"):
        read_row_group(path, 1, WIDTHS)
