"""Ranking metrics of one task, vectorised over requests.

Shapes: C candidates over the batch, B requests.

torchmetrics' and TorchRec's grouped metrics loop over groups in Python, take memory of sessions times candidates, or
settle ties by the order in which they came; these take 100,000 requests in a second and count a tie as half.
TorchRec's module measures the steps of training (`ranker.evaluation.streaming`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def auc(scores: Floats, labels: Floats) -> float:
    """Probability that a positive scores above a negative, a tie counting one half; NaN without one of both.

    Args:
        scores: `[C]`, any monotone scale.
        labels: `[C]`, 0 or 1.
    """
    return float(grouped_auc(scores, labels, np.array([0, len(scores)]))[0])


def grouped_auc(scores: Floats, labels: Floats, offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """`auc` within each request, `[B]`; NaN for requests without a positive or without a negative.

    GAUC is its `mean_of_defined`: every request counts the same. DIN's (arXiv 1706.06978) weights by
    impressions, which hardly differ here.

    The Mann-Whitney statistic: (R - n₊(n₊ + 1) / 2) / (n₊ n₋), with R the sum of the positives' ranks, ties
    sharing their mean rank.

    Args:
        scores, labels: `[C]`, request by request.
        offsets: `[B + 1]`.
    """
    group = _groups(offsets)
    order = np.lexsort((scores, group))
    # Runs of equal scores within a request, and the mean rank (from 1) that their members share.
    ordered_scores, ordered_group = scores[order], group[order]
    is_start = np.ones(len(order), dtype=bool)
    is_start[1:] = (ordered_scores[1:] != ordered_scores[:-1]) | (ordered_group[1:] != ordered_group[:-1])
    starts = np.flatnonzero(is_start)
    stops = np.append(starts[1:], len(order))
    rank = np.repeat((starts + stops + 1) / 2, stops - starts) - offsets[ordered_group]
    num_groups = len(offsets) - 1
    positives = np.bincount(group, weights=labels, minlength=num_groups)
    negatives = np.diff(offsets) - positives
    rank_sums = np.bincount(ordered_group, weights=rank * labels[order], minlength=num_groups)
    pairs = positives * negatives
    wins = rank_sums - positives * (positives + 1) / 2
    return np.divide(wins, pairs, out=np.full(num_groups, np.nan), where=pairs > 0)


def normalised_entropy(probs: Floats, labels: Floats) -> float:
    """Log loss over that of always saying the mean label; NaN if all labels are equal.

    He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook".

    Args:
        probs: `[C]` predicted probabilities.
        labels: `[C]`, 0 or 1.
    """
    base = float(np.mean(labels)) if len(labels) else 0.0
    if not 0 < base < 1:
        return float("nan")
    kept = np.clip(probs.astype(np.float64), 1e-12, 1 - 1e-12)
    loss = -np.mean(np.where(labels > 0, np.log(kept), np.log1p(-kept)))
    return float(loss / -(base * np.log(base) + (1 - base) * np.log(1 - base)))


def calibration(probs: Floats, labels: Floats, log_rate: float = 0.0) -> float:
    """Mean predicted probability over mean label, 1 where both agree; NaN without a positive.

    Where only a share w of the negatives is there, each of them stands for 1 / w.

    Args:
        probs: `[C]` predicted probabilities, as if all negatives were there.
        labels: `[C]`, 0 or 1.
        log_rate: log(w).
    """
    positives = float(labels.sum())
    if not positives:
        return float("nan")
    return float((probs * negative_weights(labels, log_rate)).sum() / positives)


def negative_weights(labels: Floats, log_rate: float) -> NDArray[np.float64]:
    """How many candidates each stands for `[C]`: a positive for itself, a negative for 1 / w."""
    return np.where(labels > 0, 1.0, np.exp(-log_rate))


def sigmoid(logits: Floats) -> NDArray[np.float64]:
    """1 / (1 + e^-x), without overflow."""
    decay = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, decay) / (1.0 + decay)


def grouped_ndcg(
    scores: Floats, labels: Floats, offsets: NDArray[np.int64], cutoff: int = 10
) -> NDArray[np.float64]:
    """NDCG at `cutoff` of each request, `[B]`: Σ label / log₂(place + 1) over its value for the best order.

    Equal scores keep the order in which the candidates came. NaN for requests without a positive.
    """
    group = _groups(offsets)
    num_groups = len(offsets) - 1
    place = np.arange(len(group)) - offsets[group] + 1
    gain = np.where(place <= cutoff, 1 / np.log2(place + 1.0), 0.0)
    found = np.bincount(group, weights=gain * labels[np.lexsort((-scores, group))], minlength=num_groups)
    best = np.bincount(group, weights=gain * labels[np.lexsort((-labels, group))], minlength=num_groups)
    return np.divide(found, best, out=np.full(num_groups, np.nan), where=best > 0)


def mean_of_defined(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def kept_offsets(mask: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets `[B + 1]` of what is left of each request once only the candidates in `mask` `[C]` are kept."""
    return np.concatenate(([0], np.cumsum(mask)))[offsets]


def _groups(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
