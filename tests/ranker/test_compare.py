"""The paired bootstrap: right on average, wider for few profiles, and only for the same requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.dataset import Dataset
from foundation.errors import DataError
from ranker.evaluation.bootstrap import compare_dumps, paired_interval
from ranker.evaluation.evaluation import Evaluation, write_request_auc
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.making import RowMaker
from ranker.schema import Task


def write(path: Path, profile: np.ndarray, aucs: np.ndarray, candidates: str = "c5") -> Path:
    rows = np.arange(len(profile))
    hashes = [f"{candidates}{row}" for row in rows]
    table = pl.DataFrame(
        {
            "request": rows,
            "profile_id": profile,
            "history_end": rows,
            "candidates_hash": hashes,
            "auc_watch": aucs,
        }
    )
    table.fill_nan(None).write_parquet(path)
    return path


def test_the_interval_is_the_one_of_means_over_profiles() -> None:
    rng = np.random.default_rng(0)
    of_profile = rng.normal(0.05, 0.2, size=400)
    # Three requests a profile that say the same: they count as one, not as three.
    low, high = paired_interval(np.repeat(of_profile, 3), np.repeat(np.arange(400), 3), seed=1)
    error = of_profile.std() / np.sqrt(400)
    assert low == pytest.approx(of_profile.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(of_profile.mean() + 1.96 * error, abs=0.1 * error)


def test_profiles_count_by_their_requests() -> None:
    difference, profile = np.array([0.3, 0.3, 0.3, -0.1]), np.array([7, 7, 7, 9])
    low, high = paired_interval(difference, profile, seed=0)
    assert (low, high) == (pytest.approx(-0.1), pytest.approx(0.3))


def test_comparing_says_both_and_the_difference(tmp_path) -> None:
    profile = np.array([1, 1, 2, 3])
    first = write(tmp_path / "first.parquet", profile, np.array([0.9, 0.7, np.nan, 0.8]))
    second = write(tmp_path / "second.parquet", profile, np.array([0.8, 0.6, np.nan, 0.7]))
    found = compare_dumps(first, second, "watch")
    assert found == compare_dumps(first, second), "without a task it is the first"
    assert found["gauc_first"] == pytest.approx(0.8)
    assert found["gauc_second"] == pytest.approx(0.7)
    assert found["gauc_difference"] == pytest.approx(0.1)
    assert found["gauc_difference_ci95"] == [pytest.approx(0.1), pytest.approx(0.1)]
    assert (found["requests"], found["profiles"]) == (3, 2)
    assert compare_dumps(second, first, "watch")["gauc_difference"] == pytest.approx(-0.1)


def test_other_requests_and_missing_tasks_are_refused(tmp_path) -> None:
    aucs = np.array([0.9, 0.7])
    first = write(tmp_path / "first.parquet", np.array([1, 2]), aucs)
    with pytest.raises(DataError, match="holds other requests than"):
        compare_dumps(first, write(tmp_path / "other.parquet", np.array([1, 3]), aucs), "watch")
    with pytest.raises(DataError, match="holds other requests than"):
        compare_dumps(
            first, write(tmp_path / "gap.parquet", np.array([1, 2]), np.array([0.9, np.nan])), "watch"
        )
    with pytest.raises(DataError, match="holds other requests than"):
        compare_dumps(first, write(tmp_path / "drawn.parquet", np.array([1, 2]), aucs, "d6"), "watch")
    with pytest.raises(DataError, match="has no task 'like'; it has watch"):
        compare_dumps(first, first, "like")
    nothing = write(tmp_path / "nothing.parquet", np.array([1, 2]), np.array([np.nan, np.nan]))
    with pytest.raises(DataError, match="no request has a positive and a negative"):
        compare_dumps(nothing, nothing, "watch")


def test_dumps_of_the_same_points_with_other_candidates_are_not_paired(
    synthetic_dataset: Dataset, make_assembly, tmp_path: Path
) -> None:
    maker = RowMaker(synthetic_dataset, make_assembly("decoder").features)

    def dump(name: str, negatives: int) -> Path:
        config = RequestConfig(negatives=negatives)
        requests = build_requests(synthetic_dataset, (Task("watch", "interaction"),), "test", config)
        aucs = {"watch": np.full(len(requests.profile), 0.5)}
        write_request_auc(tmp_path / name, maker.rows(requests), Evaluation({}, aucs, {}))
        return tmp_path / name

    first = dump("first.parquet", 15)
    assert compare_dumps(first, dump("again.parquet", 15), "watch")["gauc_difference"] == 0.0
    with pytest.raises(DataError, match="holds other requests than"):
        compare_dumps(first, dump("fewer.parquet", 14), "watch")
