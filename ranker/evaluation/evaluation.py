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
from foundation.library_notices import library_notices_off
from foundation.window import span_rows
from ranker.evaluation.metrics import (
    auc,
    grouped_auc,
    grouped_ndcg,
    kept_offsets,
    mean_of_defined,
    normalised_entropy,
)
from ranker.features.builder import FeatureBuilder
from ranker.model import Ranker
from ranker.rows.inputs import model_inputs
from ranker.rows.rows import Rows

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
def score(model: Ranker, features: FeatureBuilder, rows: Rows) -> NDArray[np.float32]:
    """Logits `[C, N]` of the candidates of all requests; the model is in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    # Requests of like length share a batch, which keeps padding low; a logit doesn't depend on its batch.
    order = np.argsort(rows.history_lengths, kind="stable")
    item_vectors = model.item_vectors()
    logits = np.empty((len(rows.item_rows), len(model.tasks)), dtype=np.float32)
    offsets = rows.candidate_offsets
    for first in range(0, len(order), REQUESTS_PER_BATCH):
        batch = order[first : first + REQUESTS_PER_BATCH]
        inputs = model_inputs(features, rows.take(batch))
        state = model.encode_profile(inputs.profile, item_vectors)
        found = model.score(state, inputs.candidates, item_vectors).numpy()
        logits[span_rows(offsets[batch], offsets[batch + 1]).rows] = found
    model.train(was_training)
    return logits


def evaluate(model: Ranker, features: FeatureBuilder, rows: Rows) -> Evaluation:
    """Metrics of every task over its labelled candidates.

    Args:
        model: unsharded.
        features: of the ranker, which may differ from the builder that made the rows in its recent items.
        rows: B requests.
    """
    with library_notices_off():
        logits = score(model, features, rows)
    metrics, request_auc = {}, {}
    for column, task in enumerate(model.tasks):
        mask = rows.mask[:, column]
        offsets = kept_offsets(mask, rows.candidate_offsets)
        scores, labels = logits[mask, column].astype(np.float64), rows.labels[mask, column]
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


def write_request_auc(path: Path, rows: Rows, evaluation: Evaluation) -> None:
    """Writes a row per request: number, profile, place in the history, hash of candidates, AUC of each task."""
    starts, stops = rows.candidate_offsets[:-1], rows.candidate_offsets[1:]
    columns: dict[str, Any] = {
        REQUEST: np.arange(len(rows)),
        PROFILE: rows.profile_id,
        HISTORY_END: rows.histories.num_events_before + rows.history_lengths,
        # Whatever their order, which no AUC depends on.
        CANDIDATES_HASH: [
            xxhash.xxh3_64_hexdigest(np.sort(rows.item_rows[start:stop].astype(np.int64)).tobytes())
            for start, stop in zip(starts, stops, strict=True)
        ],
    }
    table = pl.DataFrame(columns | {f"auc_{task}": values for task, values in evaluation.request_auc.items()})
    with atomic_file(path) as partial:
        table.fill_nan(None).write_parquet(partial)
