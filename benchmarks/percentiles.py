"""Latency statistics: percentiles that were observed, and ratios of medians with an interval.

Shapes: n samples, G blocks of an interleaved run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

BOOTSTRAP_RESAMPLES = 2_000


@dataclass(frozen=True)
class Latency:
    """Summary of latencies in milliseconds; `p99_ms` of fewer than 100 samples is their maximum."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    def to_json(self) -> dict[str, float]:
        """Plain values, rounded to a microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def percentile(samples: ArrayLike, q: float) -> float:
    """Nearest-rank percentile: the smallest sample that at least `q` percent of the samples do not exceed.

    A nearest rank is a latency that somebody saw; interpolation would invent one between the two slowest.

    Args:
        samples: `[n]`, in any order.
        q: in (0, 100].

    Raises:
        ValueError: there are no samples, or q is out of range.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    if not values.size:
        raise ValueError("samples is empty; a percentile needs at least one")
    if not 0 < q <= 100:
        raise ValueError(f"q is {q}; a percentile is above 0 and at most 100")
    rank = int(np.ceil(round(q * values.size / 100, 9)))
    return float(values[rank - 1])


def summarise(samples_s: ArrayLike) -> Latency:
    """Percentiles of latencies `[n]` given in seconds."""
    samples_ms = np.asarray(samples_s, dtype=np.float64) * 1e3
    return Latency(
        count=samples_ms.size,
        p50_ms=percentile(samples_ms, 50),
        p95_ms=percentile(samples_ms, 95),
        p99_ms=percentile(samples_ms, 99),
        max_ms=float(samples_ms.max()),
    )


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians and its 95 % bootstrap interval over blocks."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | list[float]]:
        """Plain values for a report."""
        return {"ratio": round(self.value, 3), "ci95": [round(self.low, 3), round(self.high, 3)]}


def ratio_of_medians(
    slow: Sequence[Sequence[float]], fast: Sequence[Sequence[float]], seed: int = 0
) -> Ratio:
    """How many times slower `slow` is than `fast`: median over median, blocks resampled together.

    Blocks are pairs: both variants ran in each, one after the other, so what disturbed one disturbed the other.

    Args:
        slow: G blocks of samples in seconds.
        fast: G blocks of samples in seconds.
        seed: of the resampling.

    Raises:
        ValueError: the two have different numbers of blocks.
    """
    if len(slow) != len(fast):
        raise ValueError(f"slow has {len(slow)} blocks and fast has {len(fast)}; they must be pairs")
    draws = np.random.default_rng(seed).integers(len(slow), size=(BOOTSTRAP_RESAMPLES, len(slow)))
    ratios = [_median(slow, chosen) / _median(fast, chosen) for chosen in (np.arange(len(slow)), *draws)]
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return Ratio(ratios[0], float(low), float(high))


def _median(blocks: Sequence[Sequence[float]], chosen: np.ndarray) -> float:
    return percentile(np.concatenate([np.asarray(blocks[block]) for block in chosen]), 50)
