"""How well a ranker ranks: logits of requests, and metrics of each task over them.

Shapes: B requests, C candidates over the batch, N tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import xxhash
from numpy.typing import NDArray

from foundation.atomic import atomic_file
from foundation.dataset import Dataset
from foundation.library_notices import library_notices_off
from ranker.evaluation.metrics import (
    auc,
    grouped_auc,
    grouped_ndcg,
    kept_offsets,
    mean_of_defined,
    normalised_entropy,
)
from ranker.model import Ranker
from ranker.requests.request import Requests
from ranker.training.batches import BatchBuilder

DUMP = "test_requests.parquet"
"""Per-request AUCs of a finished run, in its folder."""
REQUESTS_PER_BATCH = 64
REQUEST, PROFILE, HISTORY_END, CANDIDATES_HASH = "request", "profile_id", "history_end", "candidates_hash"


class Evaluation(NamedTuple):
    """The figures of a ranker on some requests."""

    metrics: dict[str, dict[str, float]]
    """By task: auc, gauc, ndcg@10, normalised_entropy, and how many requests and candidates they are of."""
    request_auc: dict[str, NDArray[np.float64]]
    """By task: AUC within each request `[B]`, NaN where a request lacks a positive or a negative."""


@torch.no_grad()
def score(model: Ranker, builder: BatchBuilder, requests: Requests) -> NDArray[np.float32]:
    """Logits `[C, N]` of the candidates of all requests; the model is in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    # Requests of like length share a batch, which keeps padding low; a logit doesn't depend on its batch.
    order = np.argsort(builder.history_lengths(requests), kind="stable")
    item_vectors = model.item_vectors()
    logits = np.empty((len(requests.candidate_id), len(model.tasks)), dtype=np.float32)
    candidate = np.arange(len(requests.candidate_id))
    for first in range(0, len(order), REQUESTS_PER_BATCH):
        rows = order[first : first + REQUESTS_PER_BATCH]
        inputs = builder.inputs(requests.take(rows))
        state = model.encode_profile(inputs.profile, item_vectors)
        found = model.score(state, inputs.candidates, item_vectors).numpy()
        offsets = requests.candidate_offsets
        places = np.concatenate([candidate[offsets[row] : offsets[row + 1]] for row in rows])
        logits[places] = found
    model.train(was_training)
    return logits


def evaluate(model: Ranker, builder: BatchBuilder, requests: Requests) -> Evaluation:
    """Metrics of every task over its labelled candidates."""
    with library_notices_off():
        logits = score(model, builder, requests)
    metrics, request_auc = {}, {}
    for column, task in enumerate(model.tasks):
        mask = requests.mask[:, column]
        offsets = kept_offsets(mask, requests.candidate_offsets)
        scores, labels = logits[mask, column].astype(np.float64), requests.labels[mask, column]
        request_auc[task] = grouped_auc(scores, labels, offsets)
        metrics[task] = {
            "auc": auc(scores, labels),
            "gauc": mean_of_defined(request_auc[task]),
            "ndcg@10": mean_of_defined(grouped_ndcg(scores, labels, offsets)),
            "normalised_entropy": normalised_entropy(1 / (1 + np.exp(-scores)), labels),
            "requests": int((~np.isnan(request_auc[task])).sum()),
            "candidates": len(labels),
        }
    return Evaluation(metrics, request_auc)


def write_request_auc(path: Path, dataset: Dataset, requests: Requests, evaluation: Evaluation) -> None:
    """Writes a row per request: number, profile, place in the history, hash of candidates, AUC of each task."""
    starts, stops = requests.candidate_offsets[:-1], requests.candidate_offsets[1:]
    columns: dict[str, Any] = {
        REQUEST: np.arange(len(requests.profile)),
        PROFILE: dataset.profile_ids[requests.profile],
        HISTORY_END: requests.history_end,
        # Whatever their order, which no AUC depends on.
        CANDIDATES_HASH: [
            xxhash.xxh3_64_hexdigest(np.sort(requests.candidate_id[start:stop]).tobytes())
            for start, stop in zip(starts, stops, strict=True)
        ],
    }
    table = pl.DataFrame(columns | {f"auc_{task}": values for task, values in evaluation.request_auc.items()})
    with atomic_file(path) as partial:
        table.fill_nan(None).write_parquet(partial)
