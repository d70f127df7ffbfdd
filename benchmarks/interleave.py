"""Times variants of one computation side by side, and only those that compute the right thing.

Variants run in blocks: each block gives every variant the same requests, and each block starts with the next
variant, so that a machine that slows down or warms up slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.percentiles import Latency, summarise
from serving.parity import difference

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
        parity: largest difference of each variant from the reference.
        refused: why a variant has no timings, by name.
        blocks: per variant, per block, latencies in seconds.
    """

    parity: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, list[list[float]]] = field(default_factory=dict)

    def latency(self, name: str) -> Latency:
        """Summary over all blocks of a variant that was timed."""
        return summarise(np.concatenate([np.asarray(block) for block in self.blocks[name]]))


def verify(reference: Variant, others: Sequence[Variant], numbers: Sequence[int]) -> Timings:
    """Compare each variant with the reference on the requests `numbers`; what differs too much is refused.

    The difference is max|difference| / max(1, max|logit|), as in `serving.parity`; the reference's own is 0.
    """
    expected = {number: _tensor(reference.run(number)) for number in numbers}
    timings = Timings(parity={reference.name: 0.0})
    for variant in others:
        gaps = [difference(logits, _tensor(variant.run(number))) for number, logits in expected.items()]
        # Not max(): it would drop a NaN, which stands for a reference that is not a number itself.
        worst = float(np.max(gaps))
        timings.parity[variant.name] = worst
        if not worst <= variant.tolerance:
            timings.refused[variant.name] = f"parity {worst:.2e} is above {variant.tolerance:.0e}: not timed"
    return timings


def _tensor(logits: NDArray[np.float32]) -> torch.Tensor:
    # A copy: logits that came over the wire are not writable, which PyTorch warns about.
    return torch.from_numpy(logits.copy())


def spread_blocks(sizes: Sequence[int], num_blocks: int) -> list[list[int]]:
    """Blocks of request numbers whose first requests are spread evenly over the requests' sizes.

    A variant too slow for all of a block takes its first requests alone: so they stand for all, and its median is that
    of requests of middling size.

    Args:
        sizes: of each request, in whatever makes one dearer than another.
        num_blocks: at most as many as there are requests.

    Returns:
        `num_blocks` blocks; every request is in one of them.
    """
    by_size = np.argsort(sizes, kind="stable")
    first = by_size[(2 * np.arange(num_blocks) + 1) * len(sizes) // (2 * num_blocks)]
    others = np.setdiff1d(np.arange(len(sizes)), first)
    return [
        [int(leader), *map(int, rest)]
        for leader, rest in zip(first, np.array_split(others, num_blocks), strict=True)
    ]


def time_blocks(
    variants: Sequence[Variant],
    blocks: Sequence[Sequence[int]],
    timings: Timings,
    progress: Callable[[int], object] = lambda block: None,
) -> None:
    """Time the variants that `timings` does not refuse, and add what was measured to it.

    Args:
        variants: those that `verify` saw, the reference included.
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
