"""Shards, bad rows and releases that the feature job refuses, or skips and counts."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from foundation.errors import DataError
from foundation.split import read_split
from ranker.requests.logged import LoggedConfig
from ranker.rows.folder import RowFolder
from ranker.rows.parquet import to_table
from ranker.rows.rows import Rows

REQUESTS = "requests.parquet"


def same(one: Rows, other: Rows) -> bool:
    return to_table(one).equals(to_table(other))


def in_shards(folder: Path, number: int) -> list[Path]:
    """requests.parquet as a folder of shards."""
    logged = pl.read_parquet(folder / REQUESTS)
    (folder / REQUESTS).unlink()
    (folder / "requests").mkdir()
    size = -(-logged.height // number)
    paths = [folder / "requests" / f"part-{place}.parquet" for place in range(number)]
    for place, path in enumerate(paths):
        logged.slice(place * size, size).write_parquet(path, row_group_size=40)
    return paths


def test_shards_give_the_rows_of_one_file(make, synthetic_folder, copy, tmp_path, monkeypatch) -> None:
    make(synthetic_folder, "one")
    in_shards(copy, 3)
    # Small units: every row group is one of its own.
    monkeypatch.setattr("ranker.rows.sources.UNIT_REQUESTS", 1)
    make(copy)
    one, several = (RowFolder.open(tmp_path / name) for name in ("one", "rows"))
    assert len(several.shards("train")) > 3
    for part in ("train", "validation", "test"):
        assert same(one.read_all(part), several.read_all(part)), part


def test_a_damaged_shard_stops_or_is_counted(make, copy) -> None:
    paths = in_shards(copy, 3)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(DataError, match=r"part-1\.parquet: not a readable Parquet file"):
        make(copy)
    assert make(copy, logged=LoggedConfig(bad_rows="skip"))["skipped"] == {"unreadable shards": 1}


def test_a_damaged_row_group_stops_or_is_counted(make, copy) -> None:
    paths = in_shards(copy, 2)
    content = bytearray(paths[0].read_bytes())
    content[10:2_000] = bytes(1_990)  # pages of the first row group; the footer is whole
    paths[0].write_bytes(content)
    with pytest.raises(DataError, match=r"part-0\.parquet: row group 0: not readable"):
        make(copy)
    document = make(copy, logged=LoggedConfig(bad_rows="skip"))
    assert document["skipped"] == {"requests of unreadable row groups": 40}


def test_a_column_of_another_kind_in_a_later_shard_is_named(make, copy) -> None:
    paths = in_shards(copy, 3)
    frame = pl.read_parquet(paths[2])
    frame.with_columns(pl.col("candidates").cast(pl.List(pl.String))).write_parquet(paths[2])
    with pytest.raises(DataError) as raised:
        make(copy)
    assert f"{paths[2]}: column 'candidates': is large_list" in str(raised.value)
    assert make(copy, logged=LoggedConfig(bad_rows="skip"))["skipped"] == {"unreadable shards": 1}
    # Other widths of numbers are one kind.
    frame.with_columns(pl.col("label_watch").cast(pl.List(pl.Float64))).write_parquet(paths[2])
    make(copy, "again")


def test_bad_rows_are_left_out_and_the_rest_is_as_without_them(make, copy, tmp_path) -> None:
    logged = pl.read_parquet(copy / REQUESTS)
    good = logged.filter(pl.int_range(pl.len()) % 10 != 3)
    good.write_parquet(copy / REQUESTS)
    make(copy, "good")
    spoilt = logged.with_columns(
        pl.when(pl.int_range(pl.len()) % 10 == 3)
        .then(pl.col("label_watch").list.head(3))
        .otherwise("label_watch")
        .alias("label_watch")
    )
    spoilt.write_parquet(copy / REQUESTS)
    document = make(copy, logged=LoggedConfig(bad_rows="skip"))
    assert document["skipped"] == {
        "label_watch is of another length than the candidates": logged.height - good.height
    }
    one, other = (RowFolder.open(tmp_path / name) for name in ("good", "rows"))
    for part in ("train", "test"):
        assert same(one.read_all(part), other.read_all(part)), part


def test_a_release_that_has_seen_what_is_held_out_is_refused(make, copy) -> None:
    split = json.loads((copy / "split.json").read_text())
    moved = read_split(copy / "split.json").test[0]
    split["test"] = [each for each in split["test"] if each != moved]
    (copy / "split.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match=r"trained_on\.cut\.split_hash"):
        make(copy)


def test_a_release_that_was_trained_on_more_events_is_refused(make, copy) -> None:
    events = pl.read_parquet(copy / "events.parquet")
    events.filter(pl.int_range(pl.len()).over("profile_id") >= 2).write_parquet(copy / "events.parquet")
    with pytest.raises(DataError, match=r"events\.parquet: item \d+: the release was trained on"):
        make(copy)
