"""What a person looks at after a run: are probabilities right, and how did training go.

Q points of a calibration curve, N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foundation.atomic import atomic_file
from ranker.evaluation.calibration_curve import CalibrationCurve

CALIBRATION, STEPS = "calibration.png", "steps.png"
PANEL_INCHES, DPI = 4.0, 150
COLUMNS = 3
_SHOWN = ("/loss", "_auc", "_gauc", "_ndcg@10", "_normalised_entropy", "_calibration")
"""How the tags of the curves that are drawn end; the rest, slices among it, is in TensorBoard."""
_ALL_POINTS = {"scalars": 0}
"""TensorBoard keeps a sample of a curve's points unless it is told otherwise; 0 keeps all."""


def plot_calibration(folder: Path, curves: Mapping[str, CalibrationCurve]) -> Path:
    """Draws predicted against observed, a panel per task, on logarithmic axes; on the diagonal both agree.

    A point without a positive lies on the lower edge.

    Returns:
        The PNG, replaced where it was there.
    """
    figure, panels = _panels(len(curves))
    for axes, (task, curve) in zip(panels, curves.items(), strict=True):
        axes.set(xscale="log", xlabel="mean predicted probability", ylabel="mean label", title=task)
        axes.set_yscale("log", nonpositive="clip")
        positive = curve.observed[curve.observed > 0]
        if len(positive):
            least = min(positive.min(), curve.predicted.min()) / 2
            axes.plot([least, 1], [least, 1], color="black", linewidth=0.8, linestyle="--")
            axes.plot(curve.predicted, curve.observed.clip(least), marker="o", color="tab:blue")
            axes.set_ylim(least, 1.2)
        else:
            axes.text(0.5, 0.5, "no positive", transform=axes.transAxes, ha="center")
    return _write(figure, folder / CALIBRATION)


def plot_steps(folder: Path, tensorboard: Path) -> Path | None:
    """Draws each curve of a run over its steps: losses and windowed metrics of training, metrics of validation.

    Args:
        folder: the PNG's.
        tensorboard: of the run. Where it was killed and went on, what it did twice is drawn once.

    Returns:
        The PNG, replaced where it was there; None where no curve has two points.
    """
    curves = {
        name: points
        for name, points in read_curves(tensorboard).items()
        if len(points) > 1 and name.endswith(_SHOWN) and name.count("/") == 1
    }
    if not curves:
        return None
    by_panel: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, points in curves.items():
        part, _, figure_name = name.partition("/")
        title = figure_name.replace("_crossing_", "_")
        by_panel.setdefault(title, {})[part if title == figure_name else f"{part}, crossing"] = points
    figure, panels = _panels(len(by_panel))
    for axes, (title, parts) in zip(panels, sorted(by_panel.items()), strict=True):
        for part, points in parts.items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=part, marker="." if len(steps) < 30 else None)
        axes.set(xlabel="steps", title=title)
        axes.legend()
    return _write(figure, folder / STEPS)


def read_curves(tensorboard: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar, by its tag; what a later start did again replaces what an earlier one wrote."""
    accumulator = EventAccumulator(str(tensorboard), size_guidance=_ALL_POINTS)
    accumulator.Reload()
    curves = {}
    for tag in accumulator.Tags()["scalars"]:
        by_step = {event.step: event.value for event in accumulator.Scalars(tag)}
        curves[tag] = sorted(by_step.items())
    return curves


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    rows = -(-number // COLUMNS)
    columns = min(number, COLUMNS)
    figure = Figure(figsize=(PANEL_INCHES * columns, PANEL_INCHES * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[number:]:
        spare.remove()
    for axes in panels[:number]:
        axes.grid(alpha=0.3)
    return figure, panels[:number]


def _write(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
    return path
