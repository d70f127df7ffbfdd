"""Evaluate a trained ranker on held-out requests: `python -m ranker.evaluate --ranker DIR --data DIR`.

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
from ranker.artifact import load_ranker
from ranker.evaluation.evaluation import evaluate, write_request_auc
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.making import RowMaker


@dataclass(frozen=True)
class EvaluateConfig:
    """Ranks the requests of test or validation profiles.

    Attributes:
        ranker: folder of a trained ranker.
        data: the dataset folder it was trained on.
        which: the profiles whose requests are ranked.
        dump: Parquet file to write with the AUC of each request, for a paired comparison.
        requests: how requests are made of events.
    """

    ranker: Path
    data: Path
    which: Literal["validation", "test"] = "test"
    dump: Path | None = None
    requests: tyro.conf.OmitArgPrefixes[RequestConfig] = field(default_factory=RequestConfig)


def evaluate_ranker(config: EvaluateConfig) -> dict[str, Any]:
    """The figures: by task, by slice and task, and both of each mode; None where one isn't defined.

    Raises:
        DataError: ranker or data are wrong, or the ranker was trained with other profiles held out.
    """
    ranker, dataset = load_ranker(config.ranker), load_dataset(config.data)
    if ranker.manifest.trained_on.cut != training_cut_of(dataset):
        raise DataError(
            f"{config.ranker}: was trained with other profiles held out than those of {config.data / 'split.json'};"
            " evaluate it on its own data"
        )
    requests = build_requests(dataset, ranker.tasks, config.which, config.requests)
    rows = RowMaker(dataset, ranker.features).rows(requests)
    evaluation = evaluate(ranker.model, ranker.features, rows, ranker.log_rates)
    if config.dump is not None:
        write_request_auc(config.dump, rows, evaluation)
    return evaluation.to_json()


def main() -> None:
    """The command."""
    print(json.dumps(evaluate_ranker(tyro.cli(EvaluateConfig, prog="python -m ranker.evaluate"))))


if __name__ == "__main__":
    run_command(main)
