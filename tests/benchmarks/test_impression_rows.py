"""Request rows and impression rows train the same, or nothing is timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from benchmarks import impression_rows
from benchmarks.cotraining_speed import write_release
from benchmarks.impression_rows import (
    IMPRESSION_ROWS,
    REQUEST_ROWS,
    ImpressionSpeed,
    measure_impressions,
    num_bytes,
    one_row_per_impression,
    speeds,
)
from benchmarks.two_processes import loss_curve, steady_rate
from foundation.dataset import Dataset
from foundation.release import Release, load_release
from ranker.training.sharding import process_group

SPEED = ImpressionSpeed(blocks=1, steps=1, requests=4, candidates=6, seed=0)


@pytest.fixture(scope="module")
def default_release(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("speed") / "release"
    write_release(folder, synthetic_dataset, seed=0)
    return load_release(folder)


def test_both_forms_train_the_same_and_one_is_much_larger(
    synthetic_dataset: Dataset, default_release: Release
) -> None:
    with process_group():
        report = measure_impressions(SPEED, synthetic_dataset, default_release, lambda _: None)
    assert not report["refused"]
    assert report["loss_difference"] <= 1e-5 and report["gradient_difference"] <= 1e-5
    sizes = report["bytes_per_batch"]
    assert sizes[IMPRESSION_ROWS]["rows"] > 4 * sizes[REQUEST_ROWS]["rows"]
    assert set(report["ratios"]) == {"candidates_per_s_vs_impression_rows"}


def test_forms_that_differ_are_not_timed(
    synthetic_dataset: Dataset, default_release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(rows):
        rows = one_row_per_impression(rows)
        return dataclasses.replace(rows, labels=1 - rows.labels)

    monkeypatch.setattr(impression_rows, "one_row_per_impression", wrong)
    with process_group():
        report = measure_impressions(SPEED, synthetic_dataset, default_release, lambda _: None)
    assert IMPRESSION_ROWS in report["refused"] and not report["ratios"]


def test_speed_is_per_candidate_and_leaves_a_blocks_first_step_out() -> None:
    seconds = {REQUEST_ROWS: np.array([[9.0, 1.0]]), IMPRESSION_ROWS: np.array([[0.0, 8.0]])}
    report = speeds(np.array([[5, 100]]), seconds)
    assert report["candidates_per_s"] == {REQUEST_ROWS: 100.0, IMPRESSION_ROWS: 12.5}
    assert report["ratios"]["candidates_per_s_vs_impression_rows"] == 8.0


def test_bytes_are_those_of_all_arrays() -> None:
    assert num_bytes((np.zeros(3), (np.zeros(2, dtype=np.int8), "name"))) == 26


def test_a_loss_curve_is_read_as_it_was_logged(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as curves:
        for step, loss in enumerate((3.0, 2.0, 1.0)):
            curves.add_scalar("training/loss", loss, step)
    assert loss_curve(tmp_path).tolist() == [3.0, 2.0, 1.0]


def test_a_runs_slow_start_is_left_out_of_its_rate(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as curves:
        seconds = 0.0
        for step in range(31):
            seconds += 5.0 if step < 3 else 0.5  # 64 requests each
            if step % 10 == 0:
                curves.add_scalar("training/requests_per_s", 64 * (step + 1) / seconds, step)
    assert steady_rate(tmp_path) == pytest.approx(128, rel=1e-4)
