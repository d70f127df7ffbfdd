"""Latency against candidates and against history, drawn for every variant that was timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from foundation.atomic import atomic_file

_LABELS = {"candidates": "candidates of the request", "tokens": "tokens of its history"}


def plot_sweeps(report: dict[str, Any], path: Path) -> None:
    """Draws medians on logarithmic axes, low precision dashed; a file that was there is replaced.

    Args:
        report: the document of `benchmarks.latency` with `sweeps`, `{sweep: {"sizes": [...], variant: [p50 in ms]}}`,
            None where a variant was not timed.
        path: of the PNG.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    colours = colormaps["tab10"]
    for axes, (sweep, curves) in zip(figure.subplots(1, 2), report["sweeps"].items(), strict=True):
        sizes = curves["sizes"]
        for number, name in enumerate(name for name in curves if name != "sizes"):
            points = [pair for pair in zip(sizes, curves[name], strict=True) if pair[1] is not None]
            if points:
                style = "--" if name.endswith("_int8") else "-"
                axes.plot(
                    *zip(*points, strict=True), style, marker="o", color=colours(number % 10), label=name
                )
        axes.set(xscale="log", yscale="log", xlabel=_LABELS[sweep], ylabel="median latency, ms")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    environment = report["environment"]
    figure.suptitle(
        f"One request, {report['workload']}: {environment['processor']}, {environment['threads']} threads"
    )
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
