"""Evaluate a release on held-out profiles: `python -m foundation.evaluate --release DIR --data DIR`.

Leave-one-out on the test profiles, beside popularity counted on the foundation's training events. Prints a
table, and one JSON document as the last line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from foundation.dataset import load_dataset
from foundation.errors import DataError, run_command
from foundation.leave_one_out import (
    CUTOFFS,
    PROTOCOL,
    last_events,
    model_ranks,
    popularity_ranks,
    ranking_metrics,
)
from foundation.release import check_cut, check_dataset, load_release
from foundation.split import TEST


@dataclass(frozen=True)
class EvaluateConfig:
    """Ranks the last event of every test profile among all items.

    Attributes:
        release: folder of a foundation release.
        data: the dataset folder it was trained on.
        json: print the JSON document alone, without the table.
    """

    release: Path
    data: Path
    json: bool = False


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The figures of a release.

    Returns:
        hr@k, ndcg@k (k = 1, 10, 50, 200), mrr, the same with the prefix popularity_, loss (nats per token of
        the tested windows), items, profiles, protocol, version.

    Raises:
        DataError: the data or the release are wrong, or don't fit each other.
    """
    release, dataset = load_release(config.release), load_dataset(config.data)
    check_dataset(release, dataset)
    check_cut(release, dataset)
    raw = dataset.events
    events = release.tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    tested = last_events(dataset, events, TEST)
    if not len(tested.last_row):
        raise DataError(
            f"{dataset.folder / 'events.parquet'}: no test profile has two events and ends with a known item"
        )
    ranks, loss = model_ranks(release.model, release.tokenizer, events, tested)
    popularity = popularity_ranks(dataset, events, tested, release.vocabularies.items.num_rows)
    return {
        **ranking_metrics(ranks),
        **{f"popularity_{name}": value for name, value in ranking_metrics(popularity).items()},
        "loss": loss,
        "items": dataset.num_items,
        "profiles": len(ranks),
        "protocol": PROTOCOL,
        "version": release.manifest.version,
    }


def table(figures: dict[str, Any]) -> str:
    """The figures of `evaluate` as text for people."""
    names = [f"{metric}@{k}" for k in CUTOFFS for metric in ("hr", "ndcg")] + ["mrr"]
    lines = [f"{figures['profiles']:,} test profiles, {figures['items']:,} items; {figures['protocol']}"]
    lines.append(f"{'':10}{'model':>10}{'popularity':>12}")
    lines += [f"{name:10}{figures[name]:10.4f}{figures[f'popularity_{name}']:12.4f}" for name in names]
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
