"""What int8 costs in AUC and brings in speed, on a trained ranker and the requests of held-out profiles.

    python -m benchmarks.precision --ranker RUN/ranker --data DATA

Float32, int8 item rows, int8 linear layers and both, by the fused operators. One thread; times are that thread's own,
summed over all batches. The last line printed is one JSON document.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.environment import stamp
from foundation.dataset import load_dataset
from foundation.errors import run_command
from foundation.window import span_rows
from ranker.artifact import load_ranker
from ranker.evaluation.metrics import auc, grouped_auc
from ranker.features.builder import FeatureBuilder
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from serving.candidate_arguments import candidate_arguments
from serving.fuse import fuse
from serving.quantise import quantise_halves
from serving.split import Halves, split

VARIANTS = {
    "float32": (False, False),
    "int8_rows": (True, False),
    "int8_linears": (False, True),
    "int8": (True, True),
}


@dataclass(frozen=True)
class PrecisionConfig:
    """Scores the same requests in float32 and in int8.

    Attributes:
        ranker: folder of a trained ranker.
        data: the dataset folder it was trained on.
        requests_per_batch: ranked in one call.
    """

    ranker: Path
    data: Path
    requests_per_batch: int = 32


def measure(config: PrecisionConfig) -> dict[str, Any]:
    """Figures by variant and task, and seconds of both halves."""
    torch.set_num_threads(1)
    loaded = load_ranker(config.ranker)
    dataset = load_dataset(config.data)
    rows = RowMaker(dataset, loaded.features).rows(
        build_requests(dataset, loaded.tasks, "test", RequestConfig())
    )
    halves = split(loaded.model)
    found: dict[str, Any] = {}
    base = np.empty(0)
    for name, (int8_rows, int8_linears) in VARIANTS.items():
        variant = quantise_halves(halves, rows=int8_rows, linears=int8_linears)
        fuse(variant)
        logits, times = _score(variant, loaded.features, rows, config.requests_per_batch)
        base = logits if name == "float32" else base
        found[name] = {
            **times,
            "largest_difference": float(np.abs(logits - base).max() / max(1.0, np.abs(base).max())),
            "tasks": {task.name: _figures(logits[:, i], rows, i) for i, task in enumerate(loaded.tasks)},
        }
    return {
        "benchmark": "precision",
        "environment": stamp(),
        "mode": loaded.model.mode(None),
        "requests": len(rows),
        "variants": found,
    }


@torch.inference_mode()
def _score(
    halves: Halves, features: FeatureBuilder, rows: Rows, requests_per_batch: int
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Logits `[C, N]`, and the time of each half, summed over batches."""
    order = np.argsort(rows.history_lengths, kind="stable")
    parts: list[tuple[NDArray[np.int64], Tensor]] = []
    spent = {"profile_s": 0.0, "candidates_s": 0.0}
    for first in range(0, len(order), requests_per_batch):
        batch = order[first : first + requests_per_batch]
        inputs = model_inputs(features, rows.take(batch))
        state = _timed(spent, "profile_s", lambda inputs=inputs: halves.profile(*inputs.profile))
        arguments = candidate_arguments(state, inputs.profile, inputs.candidates)
        (logits,) = _timed(spent, "candidates_s", lambda arguments=arguments: halves.candidate(*arguments))
        places = span_rows(rows.candidate_offsets[batch], rows.candidate_offsets[batch + 1]).rows
        parts.append((places, logits))
    all_logits = np.empty((len(rows.item_rows), parts[0][1].shape[1]))
    for places, logits in parts:
        all_logits[places] = logits.numpy()
    return all_logits, spent


def _timed(
    spent: dict[str, float], name: str, compute: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    start = thread_time()
    result = compute()
    spent[name] += thread_time() - start
    return result


def _figures(logits: NDArray[np.float64], rows: Rows, task: int) -> dict[str, float]:
    mask, labels = rows.mask[:, task], rows.labels[:, task]
    kept = np.concatenate(([0], np.cumsum(mask)))[rows.candidate_offsets]
    by_request = grouped_auc(logits[mask], labels[mask], kept)
    return {"auc": auc(logits[mask], labels[mask]), "gauc": float(np.nanmean(by_request))}


def main() -> None:
    """The command."""
    print(json.dumps(measure(tyro.cli(PrecisionConfig, prog="python -m benchmarks.precision"))))


if __name__ == "__main__":
    run_command(main)
