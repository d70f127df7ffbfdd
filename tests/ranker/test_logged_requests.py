"""Requests that were logged with their impressions and labels."""

from __future__ import annotations

import polars as pl
import pytest

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.raw_values import NO_NUMBER
from foundation.split import training_cut
from ranker.requests.request import RequestConfig
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
