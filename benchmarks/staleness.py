"""How well stale profile representations rank: `python -m benchmarks.staleness [--data DIR] [--plot FILE]`.

    next_item     a release that is trained to name the next item
    multi_token   the same, trained on the set of the next events, the sooner the more (`--multi-token.…`)

Each ranks a profile's last event by the representation that it had k events ago (`benchmarks.stale_ranking`). Both
are pre-trained by `python -m foundation.pretrain`, alike but for the objective; a finished run is used again, and a
killed one goes on. The last line is one JSON document.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.environment import stamp
from benchmarks.report import environment_lines
from benchmarks.stale_ranking import stale_ranks, stale_requests
from benchmarks.staleness_config import MULTI_TOKEN, NEXT_ITEM, StalenessConfig, pretrain_arguments
from benchmarks.staleness_plot import check_plot_path, plot
from benchmarks.stations import StationFailed, Stations
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.home import home
from foundation.intervals import mean_intervals
from foundation.leave_one_out import LastEvents, last_events, profile_figures
from foundation.objectives.config import MultiTokenConfig
from foundation.protocol import describe
from foundation.release import Release, check_cut, check_dataset, load_release
from foundation.sources.movielens import write_movielens
from foundation.split import TEST, VALIDATION

FIGURES = ("ndcg@10", "hr@10")
Say = Callable[[str], object]
Run = Callable[..., dict[str, Any]]
"""`Stations.run`."""


def measure(config: StalenessConfig, run: Run, say: Say) -> dict[str, Any]:
    """Trains what isn't trained yet, and measures.

    Args:
        config: what.
        run: runs a command and gives its document, see `Stations.run`.
        say: shows a line.

    Returns:
        The JSON document.

    Raises:
        DataError: settings, data or releases are wrong, or don't fit each other.
        StationFailed: a training failed; it has said why.
    """
    if config.plot is not None:
        check_plot_path(config.plot)
    dataset, releases = _given(config) if config.releases else _pretrained(config, run, say)
    # Before the measurement: afterwards the load average would be our own.
    environment = stamp()
    say("\n".join(environment_lines(environment)))
    settings = {name: _plain(value) for name, value in asdict(config).items()}
    report = {
        "benchmark": "staleness",
        "name": dataset.schema.name,
        "role": config.role,
        "protocol": _protocol(config, dataset),
        **_curves(config, dataset, releases, say),
        "releases": {name: release.manifest.version for name, release in releases.items()},
        "training": {name: release.manifest.metrics for name, release in releases.items()},
        "settings": {**settings, "protocol": dataset.protocol, "data": str(dataset.folder)},
        "environment": environment,
    }
    if config.plot is not None:
        plot(report, config.plot)
    return report


def _given(config: StalenessConfig) -> tuple[Dataset, dict[str, Release]]:
    """The releases named, and the data that both were trained on."""
    assert config.releases is not None
    first, second = (load_release(folder) for folder in config.releases)
    trained_on = first.manifest.trained_on
    dataset = load_dataset(config.data or home() / "data" / trained_on.name, trained_on.cut.protocol)
    if config.role == "validation" and dataset.protocol == "last":
        raise DataError(
            "--role validation: the releases' protocol 'last' holds no validation event out; choose settings on "
            "releases of --protocol last-two"
        )
    return dataset, _checked(dataset, {NEXT_ITEM: first, MULTI_TOKEN: second})


def _pretrained(config: StalenessConfig, run: Run, say: Say) -> tuple[Dataset, dict[str, Release]]:
    """The releases of both runs, trained where they aren't yet."""
    folder = config.data or write_movielens(home() / "data" / "movielens-1m", "1m", say).folder
    dataset = load_dataset(folder, config.protocol)
    _check_lengths(config, dataset)
    releases = {}
    for name, prediction in ((NEXT_ITEM, MultiTokenConfig()), (MULTI_TOKEN, config.multi_token)):
        document = run(
            f"pre-train {name}", "foundation.pretrain", *pretrain_arguments(config, folder, prediction)
        )
        releases[name] = load_release(Path(document["release"]))
    return dataset, _checked(dataset, releases)


def _checked(dataset: Dataset, releases: dict[str, Release]) -> dict[str, Release]:
    """The same, once each is known to be of this data, so that all see the same profiles and items."""
    for release in releases.values():
        check_dataset(release, dataset)
        check_cut(release, dataset)
    return releases


def _protocol(config: StalenessConfig, dataset: Dataset) -> str:
    """What was ranked, and by what, in words that a figure can be quoted with."""
    ranked = describe(dataset.protocol, config.role, dataset.num_items, dataset.schema.merge_adjacent)
    masked = "before that request" if config.masked == "then" else "before the ranked event"
    return (
        f"{ranked}; stale by k: ranked by the request token of the event k before the ranked one, as computed "
        f"then; masked is the history {masked}; profiles with k + 2 events or more"
    )


def _check_lengths(config: StalenessConfig, dataset: Dataset) -> None:
    """Before anything is trained: whether there can be a profile for the largest k at all."""
    longest = int(np.diff(dataset.offsets).max())
    if longest < config.k[-1] + 2:
        raise DataError(_too_stale(config.k[-1], dataset))


def _too_stale(k: int, dataset: Dataset) -> str:
    return (
        f"--k {k}: no tested profile of {dataset.folder} has {k + 2} events, as it would need; leave it out"
    )


def _curves(
    config: StalenessConfig, dataset: Dataset, releases: dict[str, Release], say: Say
) -> dict[str, Any]:
    """Figures of each model and their differences, per k on the same profiles."""
    raw, tokenizer = dataset.events, releases[NEXT_ITEM].tokenizer
    events = tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    tested: LastEvents = last_events(dataset, events, TEST if config.role == "test" else VALIDATION)
    of_k = {k: stale_requests(tested, k) for k in config.k}
    for k, requests in of_k.items():
        if not len(requests.target_row):
            raise DataError(_too_stale(k, dataset))
    values: dict[str, list[dict[str, NDArray[np.float64]]]] = {NEXT_ITEM: [], MULTI_TOKEN: []}
    for k, requests in of_k.items():
        say(f"k = {k}: {len(requests.target_row):,} profiles")
        for name, release in releases.items():
            ranks_P = stale_ranks(release.model, tokenizer, events, requests, config.masked)
            figures = profile_figures(ranks_P)
            values[name].append({figure: figures[figure].numpy() for figure in FIGURES})
    differences = [
        {figure: multi[figure] - plain[figure] for figure in FIGURES}
        for plain, multi in zip(values[NEXT_ITEM], values[MULTI_TOKEN], strict=True)
    ]
    curve = {name: _means(of_model) | _intervals(of_model, config.seed) for name, of_model in values.items()}
    intervals = {
        name.removesuffix("_ci95"): each for name, each in _intervals(differences, config.seed).items()
    }
    return {
        "curve": {"k": list(config.k), **curve},
        "difference": _means(differences),
        "difference_ci95": intervals,
        "profiles": [len(requests.target_row) for requests in of_k.values()],
    }


def _means(of_k: list[dict[str, NDArray[np.float64]]]) -> dict[str, list[Any]]:
    return {figure: [float(values[figure].mean()) for values in of_k] for figure in FIGURES}


def _intervals(of_k: list[dict[str, NDArray[np.float64]]], seed: int) -> dict[str, list[Any]]:
    """95 % intervals by the bootstrap over profiles; the same draws for every model, so differences are paired."""
    found = [mean_intervals(values, seed) for values in of_k]
    return {f"{figure}_ci95": [list(intervals[figure]) for intervals in found] for figure in FIGURES}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def table(report: dict[str, Any]) -> str:
    """The figures for people."""
    curve, heads = report["curve"], [f"{name} {figure}" for figure in FIGURES for name in ("next", "multi")]
    lines = [report["protocol"], "", f"{'k':>4}{'profiles':>10}" + "".join(f"{head:>15}" for head in heads)]
    lines[-1] += f"   multi - next {FIGURES[0]}"
    for place, (k, count) in enumerate(zip(curve["k"], report["profiles"], strict=True)):
        cells = [curve[name][figure][place] for figure in FIGURES for name in (NEXT_ITEM, MULTI_TOKEN)]
        difference, (low, high) = (
            report[part][FIGURES[0]][place] for part in ("difference", "difference_ci95")
        )
        row = f"{k:4}{count:10,}" + "".join(f"{cell:15.4f}" for cell in cells)
        lines.append(f"{row}   {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    config = tyro.cli(StalenessConfig, prog="python -m benchmarks.staleness")
    with ExitStack() as stack:
        out = stack.enter_context(Path(os.devnull).open("w")) if config.json else sys.stdout
        stations = Stations(out)
        try:
            report = measure(config, stations.run, stations.say)
        except StationFailed as failure:
            raise DataError(f"{failure}; it says why above") from None
        stations.say(table(report))
    print(json.dumps(report))


if __name__ == "__main__":
    run_command(main)
