"""The figures of one task on some candidates.

Shapes: B requests, C candidates over the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.evaluation.metrics import (
    auc,
    calibration,
    grouped_auc,
    grouped_ndcg,
    kept_offsets,
    mean_of_defined,
    normalised_entropy,
    sigmoid,
)

Figures = dict[str, float]
"""auc, gauc, ndcg@10, normalised_entropy, calibration, and of how many requests (those that gauc is the mean of) and
candidates they are."""


class Predictions(NamedTuple):
    """What a ranker says of one task, and what is true."""

    logits: NDArray[np.float64]
    """`[C]`, as served: candidates are ranked by them."""
    shown: NDArray[np.float64]
    """`[C]`, with what is for training only as it was: the label is of a candidate at its position."""
    labels: NDArray[np.float32]
    """`[C]`, 0 or 1."""
    offsets: NDArray[np.int64]
    """`[B + 1]`."""
    log_rate: float
    """log of the share of negatives that is there; probability = sigmoid(logit + log_rate)."""

    @property
    def probs(self) -> NDArray[np.float64]:
        """`[C]`, as shown, and as if all negatives were there."""
        return sigmoid(self.shown + self.log_rate)

    def only(self, mask: NDArray[np.bool_]) -> Predictions:
        """The candidates in `mask` `[C]`, of the same requests."""
        offsets = kept_offsets(mask, self.offsets)
        return Predictions(self.logits[mask], self.shown[mask], self.labels[mask], offsets, self.log_rate)


def figures(predictions: Predictions) -> Figures:
    """All figures; NaN where one isn't defined.

    AUCs and NDCG are of the order that serving gives; normalised entropy and calibration of probabilities at the
    position where a candidate was shown. Normalised entropy is of the candidates as they are, calibration of the world
    that they were drawn from.
    """
    logits, shown, labels, offsets, log_rate = predictions
    request_auc = grouped_auc(logits, labels, offsets)
    return {
        "auc": auc(logits, labels),
        "gauc": mean_of_defined(request_auc),
        "ndcg@10": mean_of_defined(grouped_ndcg(logits, labels, offsets)),
        "normalised_entropy": normalised_entropy(sigmoid(shown), labels),
        "calibration": calibration(predictions.probs, labels, log_rate),
        "requests": int((~np.isnan(request_auc)).sum()),
        "candidates": len(labels),
    }


def without_nan(plain: object) -> object:
    """The same plain values for JSON, which has no NaN: a figure that is not defined is null."""
    if isinstance(plain, dict):
        return {name: without_nan(value) for name, value in plain.items()}
    return None if isinstance(plain, float) and math.isnan(plain) else plain
