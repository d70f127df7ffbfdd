"""Ranking by stale representations, drawn: both curves, and below them their difference, good or bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from foundation.atomic import atomic_file
from foundation.errors import DataError

METRIC = "ndcg@10"
_LABELS = {"next_item": "next item", "multi_token": "multi-token"}
_COLOURS = {"next_item": "tab:gray", "multi_token": "tab:blue"}


def check_plot_path(path: Path) -> None:
    """Makes sure, before any work, that a plot can be written there.

    Raises:
        DataError: it isn't named .png, its folder is missing, or it is a folder.
    """
    if path.suffix.lower() != ".png":
        raise DataError(f"--plot {path}: a PNG is written; name it .png")
    if not path.parent.is_dir():
        raise DataError(f"--plot {path}: there is no folder {path.parent}; make it, or choose another file")
    if path.is_dir():
        raise DataError(f"--plot {path}: is a folder; name a file in it")


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws NDCG@10 over staleness with 95 % intervals; a file that was there is replaced.

    Args:
        report: the document of `benchmarks.staleness`.
        path: of the PNG, see `check_plot_path`.
    """
    ks = report["curve"]["k"]
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name, label in _LABELS.items():
        curve = report["curve"][name]
        low, high = zip(*curve[f"{METRIC}_ci95"], strict=True)
        upper.plot(ks, curve[METRIC], marker="o", color=_COLOURS[name], label=label)
        upper.fill_between(ks, low, high, color=_COLOURS[name], alpha=0.2, linewidth=0)
    upper.set(ylabel="NDCG@10", ylim=(0, None), title=_title(report))
    upper.legend()
    difference = report["difference"][METRIC]
    low, high = zip(*report["difference_ci95"][METRIC], strict=True)
    lower.axhline(0, color="black", linewidth=0.8)
    lower.plot(ks, difference, marker="o", color=_COLOURS["multi_token"])
    lower.fill_between(ks, low, high, color=_COLOURS["multi_token"], alpha=0.2, linewidth=0)
    lower.set(
        ylabel="multi-token − next item",
        xlabel="k, events since the representation was computed; below it the number of profiles",
    )
    # Logarithmic from 1 on, and linear below it, where k = 0 has its place.
    lower.set_xscale("symlog", linthresh=1, linscale=0.5)
    lower.set_xticks(ks, [f"{k}\n{count:,}" for k, count in zip(ks, report["profiles"], strict=True)])
    lower.set_xticks([], minor=True)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _title(report: dict[str, Any]) -> str:
    return f"{report['name']}, {report['role']} event, 95 % intervals over profiles"
