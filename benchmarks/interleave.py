"""Times variants of one computation side by side, and only those that compute the right thing.

Variants run in blocks: each block gives every variant the same requests, and each block starts with the next
variant, so that a machine that slows down or warms up slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.percentiles import Latency, summarise

Run = Callable[[int], NDArray[np.float32]]
"""Computes the logits `[C, N]` of the request with the given number."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a request's logits.

    Attributes:
        name: what the report calls it.
        run: computes one request.
        tolerance: largest parity difference at which its speed means anything.
        requests_per_block: how many requests a block times; None for all of the block's.
    """

    name: str
    run: Run
    tolerance: float
    requests_per_block: int | None = None


@dataclass
class Timings:
    """What one run found out.

    Attributes:
        parity: largest difference of each variant from the reference, see `difference`.
        refused: why a variant has no timings, by name.
        blocks: per variant, per block, latencies in seconds.
    """

    parity: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, list[list[float]]] = field(default_factory=dict)

    def latency(self, name: str) -> Latency:
        """Summary over all blocks of a variant that was timed."""
        return summarise(np.concatenate([np.asarray(block) for block in self.blocks[name]]))


def difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """max|found - expected| / max(1, max|expected|); infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    if not expected.size:
        return 0.0
    gap = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    return float(gap / max(1.0, float(np.abs(expected).max())))


def verify(variants: Sequence[Variant], expected: Mapping[int, NDArray[np.float32]]) -> Timings:
    """Check each variant on the requests of `expected` (number -> logits); what fails is refused."""
    timings = Timings()
    for variant in variants:
        worst = max(difference(variant.run(number), logits) for number, logits in expected.items())
        timings.parity[variant.name] = worst
        if not worst <= variant.tolerance:
            timings.refused[variant.name] = f"parity {worst:.2e} is above {variant.tolerance:.0e}: not timed"
    return timings


def time_blocks(
    variants: Sequence[Variant],
    blocks: Sequence[Sequence[int]],
    timings: Timings,
    progress: Callable[[int], None] = lambda block: None,
) -> None:
    """Time the variants that `timings` does not refuse, and add what was measured to it.

    Args:
        variants: those that `verify` saw.
        blocks: request numbers of each block.
        timings: from `verify`; its parity runs have warmed every variant up, and one more request does so again.
        progress: called with each block's number as it begins.
    """
    timed = [variant for variant in variants if variant.name not in timings.refused]
    for variant in timed:
        variant.run(blocks[0][0])
        timings.blocks[variant.name] = []
    for number, requests in enumerate(blocks):
        progress(number)
        turn = number % max(1, len(timed))
        for variant in (*timed[turn:], *timed[:turn]):
            timings.blocks[variant.name].append(_time(variant, requests))


def _time(variant: Variant, requests: Sequence[int]) -> list[float]:
    samples = []
    for request in requests[: variant.requests_per_block]:
        begin = perf_counter()
        variant.run(request)
        samples.append(perf_counter() - begin)
    return samples
