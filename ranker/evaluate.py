"""Evaluate a trained ranker on held-out requests: `python -m ranker.evaluate --ranker DIR --rows ROWS`.

Prints one JSON document: under `tasks` auc, gauc, ndcg@10, normalised_entropy and calibration of every task, under
`slices` the same of slices of the requests, under `modes` all of it of each way of scoring.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from foundation.dataset import load_dataset
from foundation.errors import DataError, run_command
from foundation.manifest import training_cut_of
from ranker.artifact import LoadedRanker, load_ranker
from ranker.evaluation.evaluation import evaluate, write_request_auc
from ranker.evaluation.plots import plot_calibration
from ranker.features.facet_names import FacetNames, facet_names
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.folder import RowFolder
from ranker.rows.making import RowMaker
from ranker.rows.manifest import MANIFEST
from ranker.rows.rows import Rows


@dataclass(frozen=True)
class EvaluateConfig:
    """Ranks the requests of test or validation profiles.

    Attributes:
        ranker: folder of a trained ranker.
        rows: request rows it was trained on; the requests of `which` are as they are there.
        data: instead, the dataset folder it was trained on, from which requests are made.
        which: the profiles whose requests are ranked.
        dump: Parquet file to write with the AUC of each request, for a paired comparison.
        plots: folder to draw the calibration of each task in.
        requests: how requests are made of events, with `data`.
    """

    ranker: Path
    data: Path | None = None
    rows: Path | None = None
    which: Literal["validation", "test"] = "test"
    dump: Path | None = None
    plots: Path | None = None
    requests: tyro.conf.OmitArgPrefixes[RequestConfig] = field(default_factory=RequestConfig)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.rows is None):
            raise ValueError(f"data is {self.data} and rows is {self.rows}; give one of them")


def evaluate_ranker(config: EvaluateConfig) -> dict[str, Any]:
    """The figures: by task, by slice and task, and both of each mode; None where one isn't defined.

    Raises:
        DataError: ranker or data are wrong, or the ranker was trained with other profiles held out.
    """
    ranker = load_ranker(config.ranker)
    rows, names = (
        _made_rows(config, ranker) if config.rows is None else _read_rows(config.rows, config.which, ranker)
    )
    evaluation = evaluate(ranker.model, ranker.features, rows, ranker.log_rates, names)
    if config.dump is not None:
        write_request_auc(config.dump, rows, evaluation)
    if config.plots is not None:
        plot_calibration(config.plots, evaluation.curves)
    return evaluation.to_json()


def _made_rows(config: EvaluateConfig, ranker: LoadedRanker) -> tuple[Rows, FacetNames]:
    assert config.data is not None
    dataset = load_dataset(config.data)
    if ranker.manifest.trained_on.cut != training_cut_of(dataset):
        raise DataError(
            f"{config.ranker}: was trained with other profiles held out than those of {config.data / 'split.json'};"
            " evaluate it on its own data"
        )
    requests = build_requests(dataset, ranker.tasks, config.which, config.requests)
    return RowMaker(dataset, ranker.features).rows(requests), facet_names(dataset)


def _read_rows(
    folder: Path, which: Literal["validation", "test"], ranker: LoadedRanker
) -> tuple[Rows, FacetNames]:
    rows = RowFolder.open(folder)
    made, trained = rows.manifest, ranker.manifest
    tasks = tuple(task.name for task in ranker.tasks)
    checks = {
        "tasks": (made.tasks, tasks),
        "release.vocabulary_hash": (made.release.vocabulary_hash, trained.foundation.vocabulary_hash),
        "release.cut": (made.release.cut, trained.trained_on.cut),
    }
    for name, (found, expected) in checks.items():
        if found != expected:
            raise DataError(
                f"{folder / MANIFEST}: {name} is {found}, the ranker's is {expected}; evaluate it on the rows that it"
                " was trained on"
            )
    return rows.read_all(which), rows.facet_names


def main() -> None:
    """The command."""
    print(json.dumps(evaluate_ranker(tyro.cli(EvaluateConfig, prog="python -m ranker.evaluate"))))


if __name__ == "__main__":
    run_command(main)
