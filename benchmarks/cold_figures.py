"""Figures of tested events: places among the titles of their own kind, popularity by genre, and how sure they are.

Letters: Q tested events, I item rows (0 out of vocabulary, 1 start marker, then the catalogue), M metadata columns,
P profiles, V figures, S bootstrap samples.

Titles with the same metadata can have the same score. A title's place among its equals is then drawn: every figure
here is the expectation over that draw, of the model as of popularity, so that no order of rows decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.item_tower import INITIAL_GATE, INITIAL_GATE_SLOPE, ItemTower, count_bucket
from foundation.joint_table import PADDING_ROW
from foundation.vocabulary import FIRST_KNOWN

CUTOFF = 10
HITS = torch.ones(CUTOFF, dtype=torch.float64)
"""Gain of each of the first places, for the hit rate; with one right title it is recall, too."""
DISCOUNTED = 1.0 / torch.log2(torch.arange(CUTOFF, dtype=torch.float64) + 2)
"""For NDCG."""
NUM_SAMPLES = 2_000


def expected_gain(scores_QI: Tensor, targets_Q: Tensor, ranked_QI: Tensor, gains_K: Tensor) -> Tensor:
    """Gain of each target's place among the ranked titles, on average over the orders of equal scores.

    Args:
        scores_QI: higher is better.
        targets_Q: int64 item rows.
        ranked_QI: bool, titles to rank; the target is, whatever it says.
        gains_K: float64, of the first K places; 0 behind them.

    Returns:
        float64 `[Q]`.
    """
    target_Q1 = scores_QI.gather(1, targets_Q[:, None])
    ranked_QI = ranked_QI.scatter(
        1, targets_Q[:, None], torch.ones_like(targets_Q[:, None], dtype=torch.bool)
    )
    ahead_Q = (ranked_QI & (scores_QI > target_Q1)).sum(dim=1)
    equal_Q = (ranked_QI & (scores_QI == target_Q1)).sum(dim=1)
    up_to = torch.cat((gains_K.new_zeros(1), gains_K.cumsum(0)))
    first, stop = ahead_Q.clamp_max(len(gains_K)), (ahead_Q + equal_Q).clamp_max(len(gains_K))
    return (up_to[stop] - up_to[first]) / equal_Q


def same_kind(is_cold_I: Tensor, targets_Q: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
    """Bool `[Q, I]`: the titles that are cold where the target is, and warm where it is; without those seen.

    Args:
        is_cold_I: bool, by item row.
        targets_Q: int64 item rows.
        seen: (place, item row) pairs to leave out.
    """
    return unseen(len(is_cold_I), len(targets_Q), seen) & (is_cold_I == is_cold_I[targets_Q][:, None])


def unseen(num_rows: int, num_events: int, seen: tuple[Tensor, Tensor]) -> Tensor:
    """Bool `[Q, I]`: all titles but those seen; never the two special rows."""
    ranked_QI = torch.ones(num_events, num_rows, dtype=torch.bool)
    ranked_QI[:, :FIRST_KNOWN] = False
    ranked_QI[seen] = False
    return ranked_QI


def value_popularity(
    feature_rows: NDArray[np.int64], counts: NDArray[np.int64], is_cold: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """How popular titles should be, going by those that share a metadata value (a genre) with them.

    A value's popularity is the training events of its warm titles over how many these are.

    Args:
        feature_rows: `[I, M]`, rows of the joint metadata table; 0 where a title has no value.
        counts: `[I]`, training events.
        is_cold: bool `[I]`.

    Returns:
        By variant, float64 `[I]`: "mean" and "sum" over a title's values; 0 for a title without any.
    """
    is_warm = ~is_cold & (np.arange(len(counts)) >= FIRST_KNOWN)
    num_rows = int(feature_rows.max()) + 1
    values = feature_rows[is_warm]
    titles = np.bincount(values.ravel(), minlength=num_rows)
    events = np.bincount(
        values.ravel(), weights=np.repeat(counts[is_warm], values.shape[1]), minlength=num_rows
    )
    popularity = events / np.maximum(titles, 1)
    popularity[PADDING_ROW] = 0.0
    total = popularity[feature_rows].sum(axis=1)
    return {"mean": total / np.maximum(1, (feature_rows != PADDING_ROW).sum(axis=1)), "sum": total}


class Estimates(NamedTuple):
    """Means over events, and the same means when profiles are drawn again."""

    means: dict[str, float]
    samples: dict[str, NDArray[np.float64]]  # [S] each, from the same draws

    def interval(self, name: str) -> list[float]:
        """The 95 % percentile interval (Efron, 1979) of one mean."""
        return _quantiles(self.samples[name])

    def ratio(self, name: str, base: str) -> float | None:
        """One mean over another; None where that is 0."""
        return self.means[name] / self.means[base] if self.means[base] else None

    def ratio_interval(self, name: str, base: str) -> list[float] | None:
        """Of `ratio`, both from the same draws; None where a draw has a base of 0."""
        if not self.samples[base].all():
            return None
        return _quantiles(self.samples[name] / self.samples[base])


def estimate(
    values: Mapping[str, NDArray[np.float64]],
    profile: NDArray[np.int64],
    seed: int,
    num_samples: int = NUM_SAMPLES,
) -> Estimates:
    """Means over events, with a bootstrap that draws whole profiles, since events of one profile are alike.

    Args:
        values: one number per event, by name; at least one event.
        profile: what tells profiles apart, one number per event.
        seed: of the draws.
        num_samples: S.
    """
    _, owner = np.unique(profile, return_inverse=True)
    events_P = np.bincount(owner)
    sums_PV = np.column_stack([np.bincount(owner, weights=each) for each in values.values()])
    rng, num_profiles = np.random.default_rng(seed), len(events_P)
    means_SV = np.empty((num_samples, len(values)))
    for sample in range(num_samples):
        times_P = np.bincount(rng.integers(num_profiles, size=num_profiles), minlength=num_profiles)
        means_SV[sample] = times_P @ sums_PV / (times_P @ events_P)
    means = sums_PV.sum(axis=0) / events_P.sum()
    return Estimates(
        dict(zip(values, means.tolist(), strict=True)), dict(zip(values, means_SV.T, strict=True))
    )


def _quantiles(samples: NDArray[np.float64]) -> list[float]:
    return [float(quantile) for quantile in np.quantile(samples, [0.025, 0.975])]


@torch.no_grad()
def gates_by_count(tower: ItemTower) -> list[dict[str, float]]:
    """How far titles live on their ids, by how often they were seen in training.

    Returns:
        For each bucket of counts with titles: `from_count`, `titles`, their mean `gate` as of the release (0: all
        metadata, 1: all id), and the `initial_gate` before training.
    """
    gates, buckets = tower().gates[FIRST_KNOWN:], count_bucket(tower.counts[FIRST_KNOWN:])
    return [
        {
            "from_count": 0 if not bucket else 2 ** (bucket - 1),
            "titles": int((buckets == bucket).sum()),
            "gate": gates[buckets == bucket].mean().item(),
            "initial_gate": torch.sigmoid(torch.tensor(INITIAL_GATE + INITIAL_GATE_SLOPE * bucket)).item(),
        }
        for bucket in buckets.unique().tolist()
    ]
