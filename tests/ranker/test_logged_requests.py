"""Requests that were logged with their impressions and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.raw_values import NO_NUMBER
from foundation.split import training_cut
from ranker.requests.bad_rows import Policy
from ranker.requests.logged import LoggedConfig, LoggedRequests, read_requests
from ranker.requests.request import RequestConfig, Requests, join_requests
from ranker.requests.source import build_requests
from ranker.schema import load_tasks


def test_logged_requests_keep_impressions_labels_and_context(synthetic_dataset, synthetic_folder) -> None:
    tasks = load_tasks(synthetic_folder / "schema.toml")
    logged = pl.read_parquet(synthetic_folder / "requests.parquet")
    requests = build_requests(synthetic_dataset, tasks, "test", RequestConfig())
    assert len(requests.profile) > 5
    for b, (profile, end) in enumerate(zip(requests.profile, requests.history_end, strict=True)):
        (row,) = logged.filter(
            (pl.col("profile_id") == synthetic_dataset.profile_ids[profile])
            & (pl.col("timestamp") == requests.timestamp[b])
        ).to_dicts()
        rows = slice(*requests.candidate_offsets[b : b + 2])
        assert requests.candidate_id[rows].tolist() == row["candidates"]
        assert requests.labels[rows, 0].tolist() == row["label_watch"]
        assert requests.mask[rows, 0].all()
        assert requests.mask[rows, 1].tolist() == [label is not None for label in row["label_like"]]
        assert requests.labels[rows, 1].tolist() == [label or 0 for label in row["label_like"]]
        first, stop = synthetic_dataset.offsets[profile : profile + 2]
        times = synthetic_dataset.events.timestamp[first:stop]
        assert end - first == (times < requests.timestamp[b]).sum() >= training_cut(stop - first)
        if row["home_row"] is None:
            assert requests.facets["home_row"][b] == NO_NUMBER
        else:
            assert requests.facets["home_row"][b] == row["home_row"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop("label_like"), "no column 'label_like'"),
        (
            lambda table: table.with_columns(pl.col("label_watch").list.head(3)),
            "column 'label_watch': row 0 holds 3 labels for 20 candidates",
        ),
        (
            lambda table: table.with_columns(pl.col("label_watch") * 2),
            "row group 0: column 'label_watch': row 0 holds 2; a label is 0, 1 or null",
        ),
        (
            lambda table: table.with_columns(pl.col("candidates").list.head(0)),
            "column 'candidates': row 0 holds no candidate",
        ),
        (
            lambda table: table.with_columns(pl.col("profile_id") + 1_000_000),
            "column 'profile_id': row 0 is of a profile that has no event",
        ),
    ],
)
def test_wrong_logged_requests_are_named_in_one_line(synthetic_folder, tmp_path, change, said) -> None:
    for name in ("events", "items", "profiles"):
        (tmp_path / f"{name}.parquet").symlink_to(synthetic_folder / f"{name}.parquet")
    for name in ("schema.toml", "split.json"):
        (tmp_path / name).symlink_to(synthetic_folder / name)
    change(pl.read_parquet(synthetic_folder / "requests.parquet")).write_parquet(
        tmp_path / "requests.parquet"
    )
    with pytest.raises(DataError, match=r"requests\.parquet") as raised:
        build_requests(load_dataset(tmp_path), load_tasks(tmp_path / "schema.toml"), "train", RequestConfig())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def _with_tasks(folder: Path, tasks: str) -> Path:
    """The folder's schema with other tasks, and no candidate features."""
    path = folder / "schema.toml"
    schema, _, _ = path.read_text(encoding="utf-8").partition("[[task]]")
    path.unlink()
    path.write_text(schema + tasks, encoding="utf-8")
    return folder


def _linked(synthetic_folder: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in synthetic_folder.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


WINDOWS = (
    '[[task]]\nname = "soon"\nkind = "window"\nwithin_s = 7200\n'
    '[[task]]\nname = "long"\nkind = "window"\nwithin_s = 2000000\nfacet = "duration"\nat_least = 1800\n'
)


@pytest.mark.parametrize("merged", [False, True])
def test_window_labels_are_what_the_profile_did_in_time(synthetic_folder, tmp_path, merged) -> None:
    folder = _linked(synthetic_folder, tmp_path / "data")
    _with_tasks(folder, WINDOWS + ("[merge]\nadjacent = true\n" if merged else ""))
    dataset, tasks = load_dataset(folder), load_tasks(folder / "schema.toml")
    logged, requests = read_requests(dataset, tasks)
    events = dataset.events
    log_end = int(pl.read_parquet(folder / "events.parquet")["timestamp"].max())  # type: ignore[arg-type]
    assert 0 < requests.labels[:, 0].sum() < requests.labels[:, 1].sum()
    for task, column in zip(tasks, range(2), strict=True):
        num_open = 0
        for b in range(0, len(requests.profile), 7):
            first, last = requests.candidate_offsets[b : b + 2]
            mine = slice(*dataset.offsets[requests.profile[b] : requests.profile[b] + 2])
            start, within = requests.timestamp[b], task.within_s
            assert within is not None
            in_time = (events.over_at[mine] >= start) & (events.timestamp[mine] <= start + within)
            if task.facet is not None:
                in_time &= events.facets[task.facet][mine] >= 1800
            acted = np.isin(requests.candidate_id[first:last], events.item_id[mine][in_time])
            # Of a window that the log ends in, positives alone would be known.
            is_whole = start + within <= log_end
            num_open += 0 if is_whole else last - first
            assert requests.labels[first:last, column].tolist() == (acted & is_whole).tolist()
            assert requests.mask[first:last, column].tolist() == [is_whole] * (last - first)
        assert (num_open > 0) == (column == 1)
        assert logged.counts[f"{task.name}: windows that the log ends in"] >= num_open


def test_a_column_of_numbers_has_a_threshold(synthetic_folder, tmp_path) -> None:
    folder = _linked(synthetic_folder, tmp_path / "data")
    _with_tasks(folder, '[[task]]\nname = "top"\nkind = "column"\ncolumn = "positions"\nat_least = 17\n')
    _, requests = read_requests(load_dataset(folder), load_tasks(folder / "schema.toml"))
    place = np.concatenate([np.arange(length) for length in np.diff(requests.candidate_offsets)])
    assert requests.mask.all()
    assert np.array_equal(requests.labels[:, 0], place >= 17)


def _own_logs(folder: Path, merged: bool) -> Path:
    """Ten profiles who act on item 1 at 10, 20, 30 and on item 2 at 40, 50; a request of each at 25."""
    folder.mkdir()
    ids = [profile for profile in range(10) for _ in range(5)]
    pl.DataFrame(
        {"profile_id": ids, "item_id": [1, 1, 1, 2, 2] * 10, "timestamp": [10, 20, 30, 40, 50] * 10}
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame({"item_id": [1, 2]}).write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {
            "profile_id": list(range(10)),
            "timestamp": [25] * 10,
            "candidates": [[2, 1]] * 10,
            "label": [[1, 0]] * 10,
        }
    ).write_parquet(folder / "requests.parquet")
    merge = "[merge]\nadjacent = true\n" if merged else ""
    task = '[[task]]\nname = "watch"\nkind = "column"\ncolumn = "label"\n'
    (folder / "schema.toml").write_text(merge + task, encoding="utf-8")
    return folder


def test_a_merged_event_that_a_request_lies_within_is_not_of_its_history(tmp_path) -> None:
    """It holds actions of after the request: how many there would be is what the labels ask."""
    for merged, num_events in ((False, 2), (True, 0)):
        folder = _own_logs(tmp_path / str(merged), merged)
        dataset = load_dataset(folder)
        logged, requests = read_requests(dataset, load_tasks(folder / "schema.toml"))
        assert (requests.history_end - dataset.offsets[requests.profile] == num_events).all()
        assert logged.counts["requests within a merged event"] == (10 if merged else 0)
    later = pl.read_parquet(folder / "requests.parquet").with_columns(timestamp=pl.lit(31))
    later.write_parquet(folder / "requests.parquet")
    logged, requests = read_requests(dataset, load_tasks(folder / "schema.toml"))
    assert (requests.history_end - dataset.offsets[requests.profile] == 1).all()
    assert logged.counts["requests within a merged event"] == 0


SPOILT = {
    "profile_id is null": {"profile_id": None},
    "timestamp is null": {"timestamp": None},
    "no candidate": {"candidates": [], "label": []},
    "too many candidates": {"candidates": [1, 2, 1, 2], "label": [1, 0, 0, 0]},
    "null candidate": {"candidates": [1, None]},
    "label is of another length than the candidates": {"label": [1]},
    "label is out of range": {"label": [1, 2]},
    "profile without events": {"profile_id": 77},
}


@pytest.mark.parametrize(("reason", "change"), list(SPOILT.items()))
def test_a_bad_request_stops_or_is_skipped_and_counted(tmp_path, reason, change) -> None:
    folder = _own_logs(tmp_path / "data", merged=False)
    rows = pl.read_parquet(folder / "requests.parquet").to_dicts()
    for place in (4, 7):
        rows[place] |= change
    pl.DataFrame(rows).write_parquet(folder / "requests.parquet", row_group_size=3)
    dataset, tasks = load_dataset(folder), load_tasks(folder / "schema.toml")

    def read(policy: Policy) -> tuple[LoggedRequests, list[Requests]]:
        logged = LoggedRequests(dataset, tasks, LoggedConfig(policy, max_candidates=3))
        return logged, [part for group in logged.row_groups() for part in logged.read(group)]

    with pytest.raises(DataError) as raised:
        read("stop")
    # Row 4 of the file is row 1 of its second row group.
    (field,) = list(change)[:1]
    assert f"requests.parquet: row group 1: column '{field}': row 1 " in str(raised.value)
    logged, parts = read("skip")
    assert logged.bad.counts == {reason: 2}
    assert logged.bad.examples[reason] == str(raised.value)
    requests = join_requests(parts)
    assert dataset.profile_ids[requests.profile].tolist() == [0, 1, 2, 3, 5, 6, 8, 9]
    assert requests.labels[:, 0].tolist() == [1, 0] * 8
    assert logged.counts["requests read"] == 10


def test_null_and_nan_are_no_label(tmp_path) -> None:
    folder = _own_logs(tmp_path / "data", merged=False)
    logged = pl.read_parquet(folder / "requests.parquet")
    labels = pl.Series("label", [[1.0, None], [float("nan"), 0.0]] * 5)
    logged.with_columns(labels).write_parquet(folder / "requests.parquet")
    _, requests = read_requests(load_dataset(folder), load_tasks(folder / "schema.toml"))
    assert requests.mask[:, 0].tolist() == [True, False, False, True] * 5
    assert requests.labels[:, 0].tolist() == [1, 0, 0, 0] * 5


def test_requests_without_a_positive_have_a_policy_of_their_own(tmp_path) -> None:
    folder = _own_logs(tmp_path / "data", merged=False)
    rows = pl.read_parquet(folder / "requests.parquet").to_dicts()
    rows[2] |= {"label": [0, None]}
    pl.DataFrame(rows).write_parquet(folder / "requests.parquet")
    dataset, tasks = load_dataset(folder), load_tasks(folder / "schema.toml")
    kept: dict[Literal["keep", "skip"], int] = {"keep": 10, "skip": 9}
    for policy, num_kept in kept.items():
        logged = LoggedRequests(dataset, tasks, LoggedConfig("skip", policy))
        (requests,) = logged.read(*logged.row_groups())
        assert len(requests.profile) == num_kept
        assert logged.counts["requests without a positive"] == 1
        assert logged.bad.counts == ({"no positive": 1} if policy == "skip" else {})
    # Its own policy holds, whatever is done about bad rows.
    logged = LoggedRequests(dataset, tasks, LoggedConfig("skip", "stop"))
    with pytest.raises(DataError, match="row 2 has no candidate with a positive label"):
        list(logged.read(*logged.row_groups()))


def test_a_large_row_group_is_read_in_parts(tmp_path, monkeypatch) -> None:
    folder = _own_logs(tmp_path / "data", merged=False)
    dataset, tasks = load_dataset(folder), load_tasks(folder / "schema.toml")
    _, whole = read_requests(dataset, tasks)
    monkeypatch.setattr("ranker.requests.shards.BATCH_REQUESTS", 4)
    logged = LoggedRequests(dataset, tasks, LoggedConfig())
    parts = list(logged.read(*logged.row_groups()))
    assert [len(part.profile) for part in parts] == [4, 4, 2]
    assert np.array_equal(join_requests(parts).candidate_id, whole.candidate_id)


def test_where_requests_are_must_be_clear(tmp_path) -> None:
    folder = _own_logs(tmp_path / "data", merged=False)
    dataset, tasks = load_dataset(folder), load_tasks(folder / "schema.toml")
    (folder / "requests").mkdir()
    with pytest.raises(DataError, match=r"has both requests\.parquet and requests/"):
        LoggedRequests(dataset, tasks, LoggedConfig())
    (folder / "requests.parquet").unlink()
    with pytest.raises(DataError, match=r"requests\.parquet: not found, nor shards"):
        LoggedRequests(dataset, tasks, LoggedConfig())
