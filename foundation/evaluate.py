"""Evaluate a release on what it held out: `python -m foundation.evaluate --release DIR --data DIR`.

Leave-one-out under the release's own protocol, beside popularity counted on the foundation's training events.
Prints tables, and one JSON document as the last line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from torch import Tensor

from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.home import home
from foundation.intervals import mean_intervals
from foundation.leave_one_out import (
    CUTOFFS,
    LastEvents,
    last_events,
    popularity_ranks,
    profile_figures,
    rank_tested,
    ranking_metrics,
)
from foundation.protocol import describe
from foundation.ranking_dump import NUM_TOP, check_dump_path, write_ranking_dump
from foundation.release import check_cut, check_dataset, load_release
from foundation.slices import slices
from foundation.split import TEST, VALIDATION
from foundation.tokens import EventIds

_INTERVALS_OF = ("hr@10", "ndcg@10", "mrr")


@dataclass(frozen=True)
class EvaluateConfig:
    """Ranks the held-out event of every tested profile among all items.

    Attributes:
        release: folder of a foundation release.
        data: the dataset folder it was trained on; by default the folder that the sources write data of that
            name to.
        json: print the JSON document alone, without the tables.
        role: which held-out events; settings are chosen on validation, and test is looked at once.
        dump: a Parquet file to write, with the rank and the top 200 of every tested profile.
        seed: of the bootstrap.
    """

    release: Path
    data: Path | None = None
    json: bool = False
    role: Literal["test", "validation"] = "test"
    dump: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The figures of a release.

    Returns:
        hr@k, ndcg@k (k = 1, 10, 50, 200), mrr, the same with the prefix popularity_, the 95 % intervals
        hr@10_ci95, ndcg@10_ci95, mrr_ci95 [low, high], slices (`foundation.slices`), loss (nats, of the tested
        items), items, profiles, role, protocol (in words), version.

    Raises:
        DataError: the data or the release are wrong, or don't fit each other; or nothing can be tested.
    """
    if config.dump is not None:
        check_dump_path(config.dump)
    release = load_release(config.release)
    trained_on = release.manifest.trained_on
    dataset = load_dataset(config.data or home() / "data" / trained_on.name, trained_on.cut.protocol)
    check_dataset(release, dataset)
    check_cut(release, dataset)
    raw = dataset.events
    events = release.tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    tested = _tested(dataset, events, config.role)
    num_top = NUM_TOP if config.dump else 0
    ranking = rank_tested(release.model, release.tokenizer, events, tested, num_top, show_progress=True)
    popularity = popularity_ranks(dataset, events, tested, release.vocabularies.items.num_rows)
    protocol = describe(
        trained_on.cut.protocol, config.role, dataset.num_items, dataset.schema.merge_adjacent
    )
    version = release.manifest.version
    if config.dump is not None:
        about = {"protocol": protocol, "release": version, "rank": "1 is first"}
        write_ranking_dump(config.dump, dataset, tested, ranking, about)
    return {
        **ranking_metrics(ranking.ranks),
        **{f"popularity_{name}": value for name, value in ranking_metrics(popularity).items()},
        **_intervals(ranking.ranks, config.seed),
        "slices": slices(dataset, events, tested, ranking.ranks),
        "loss": ranking.losses.mean().item(),
        "items": dataset.num_items,
        "profiles": len(ranking.ranks),
        "role": config.role,
        "protocol": protocol,
        "version": version,
    }


def _tested(dataset: Dataset, events: EventIds, role: Literal["test", "validation"]) -> LastEvents:
    if role == "validation" and dataset.protocol == "last":
        raise DataError(
            "--role validation: the release's protocol 'last' holds no validation event out; choose settings on a "
            "release of --protocol last-two"
        )
    tested = last_events(dataset, events, TEST if role == "test" else VALIDATION)
    if not len(tested.last_row):
        raise DataError(
            f"{dataset.folder / 'events.parquet'}: no {role} profile has a history and a known item after it"
        )
    return tested


def _intervals(ranks_P: Tensor, seed: int) -> dict[str, list[float]]:
    figures = {name: profile_figures(ranks_P)[name].numpy().astype(np.float64) for name in _INTERVALS_OF}
    return {f"{name}_ci95": list(interval) for name, interval in mean_intervals(figures, seed).items()}


def table(figures: dict[str, Any]) -> str:
    """The figures of `evaluate` as text for people."""
    names = [f"{metric}@{k}" for k in CUTOFFS for metric in ("hr", "ndcg")] + ["mrr"]
    lines = [f"{figures['profiles']:,} {figures['role']} profiles, {figures['items']:,} items"]
    lines += [figures["protocol"], "", f"{'':10}{'model':>10}{'popularity':>12}{'95 % interval':>20}"]
    for name in names:
        interval = "{:.4f} .. {:.4f}".format(*figures[f"{name}_ci95"]) if name in _INTERVALS_OF else ""
        lines.append(
            f"{name:10}{figures[name]:10.4f}{figures[f'popularity_{name}']:12.4f}{interval:>20}".rstrip()
        )
    lines += ["", f"{'':26}{'profiles':>10}" + "".join(f"{name:>10}" for name in _INTERVALS_OF)]
    for slicing, parts in figures["slices"].items():
        for part, values in parts.items():
            shares = "".join(f"{values[name]:10.4f}" for name in _INTERVALS_OF)
            lines.append(f"{slicing:16}{part:10}{values['profiles']:10,}{shares}")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    config = tyro.cli(EvaluateConfig, prog="python -m foundation.evaluate")
    figures = evaluate(config)
    if not config.json:
        print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
