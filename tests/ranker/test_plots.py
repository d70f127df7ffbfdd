"""Plots are drawn of what a run said, whatever is missing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ranker.evaluation.calibration_curve import NUM_POINTS, CalibrationCurve, calibration_curve
from ranker.evaluation.plots import plot_calibration, plot_steps, read_curves

PNG = b"\x89PNG"


def write_curve(folder: Path, steps: range, shift: float) -> None:
    with SummaryWriter(folder, purge_step=steps.start) as writer:
        for step in steps:
            writer.add_scalar("training/loss", step + shift, step)
        writer.add_scalar("validation/watch_auc", 0.7, steps.stop)


def test_curves_of_a_run_that_went_on_after_a_kill_are_one(tmp_path: Path) -> None:
    write_curve(tmp_path, range(10), 0.0)
    write_curve(tmp_path, range(6, 1_500), 0.5)
    found = read_curves(tmp_path)
    expected = [(step, float(step)) for step in range(6)] + [(step, step + 0.5) for step in range(6, 1_500)]
    assert found["training/loss"] == expected
    # What the first start said of step 10 was of weights that are gone.
    assert [step for step, _ in found["validation/watch_auc"]] == [1_500]


def test_steps_are_drawn_once_there_is_a_curve(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert plot_steps(tmp_path / "plots", tmp_path / "none") is None
    write_curve(tmp_path / "run", range(4), 0.0)
    path = plot_steps(tmp_path / "plots", tmp_path / "run")
    assert path is not None and path.read_bytes().startswith(PNG)
    before = path.stat().st_mtime_ns
    assert plot_steps(tmp_path / "plots", tmp_path / "run") == path
    assert path.stat().st_mtime_ns > before


def test_calibration_is_drawn_for_every_task(tmp_path: Path) -> None:
    nothing = np.empty(0)
    curves = {
        "watch": CalibrationCurve(np.array([0.01, 0.2]), np.array([0.0, 0.3]), np.array([5, 5])),
        "like": CalibrationCurve(np.array([0.5]), np.array([0.0]), np.array([3])),
        "share": calibration_curve(nothing, nothing),
        "save": CalibrationCurve(np.array([0.5]), np.array([1.0]), np.array([3])),
    }
    path = plot_calibration(tmp_path / "plots", curves)
    assert path.read_bytes().startswith(PNG)


def test_a_curve_has_points_of_like_many_candidates() -> None:
    probs = np.linspace(0.01, 0.99, 999)
    curve = calibration_curve(probs, (np.arange(999) % 2).astype(np.float32))
    assert len(curve.candidates) == NUM_POINTS
    assert curve.candidates.sum() == 999 and np.ptp(curve.candidates) <= 1
    np.testing.assert_allclose(curve.predicted.mean(), probs.mean(), atol=1e-3)
    few = calibration_curve(np.array([0.2, 0.1]), np.array([1.0, 0.0]))
    assert few.predicted.tolist() == [0.1, 0.2] and few.observed.tolist() == [0.0, 1.0]
