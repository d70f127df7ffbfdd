"""A variant is timed only if it computes the right thing, and variants take turns."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.interleave import Variant, spread_blocks, time_blocks, verify

LOGITS = np.array([[4.0, -8.0]], dtype=np.float32)


class Recorded:
    """A variant's `run` that notes who ran what, and is off by `error`."""

    def __init__(self, log: list[tuple[str, int]], name: str, error: float = 0.0) -> None:
        self.log, self.name, self.error = log, name, error

    def __call__(self, number: int) -> NDArray[np.float32]:
        self.log.append((self.name, number))
        return LOGITS + np.float32(self.error)


def _variants(log: list[tuple[str, int]], **errors: float) -> list[Variant]:
    return [Variant(name, Recorded(log, name, error), tolerance=1e-5) for name, error in errors.items()]


def test_a_variant_whose_parity_failed_is_never_timed() -> None:
    log: list[tuple[str, int]] = []
    variants = _variants(log, whole=0.0, right=0.0, wrong=0.01, broken=float("nan"))
    timings = verify(variants[0], variants[1:], [0, 1])
    log.clear()
    time_blocks(variants, [[0], [0]], timings)
    assert set(timings.refused) == {"wrong", "broken"}
    assert set(timings.blocks) == {"whole", "right"}
    assert {name for name, _ in log} == {"whole", "right"}
    assert timings.parity["wrong"] == pytest.approx(0.01 / 8, rel=1e-3)
    with pytest.raises(KeyError):
        timings.latency("wrong")


def test_nothing_is_timed_against_a_reference_that_is_not_a_number() -> None:
    variants = _variants([], whole=float("nan"), right=0.0)
    assert set(verify(variants[0], variants[1:], [0]).refused) == {"right"}


def test_one_wrong_request_is_enough() -> None:
    whole = Variant("whole", lambda number: LOGITS, tolerance=1e-5)
    sometimes = Variant("sometimes", lambda number: LOGITS * (1 if number < 2 else 2), tolerance=1e-5)
    assert not verify(whole, [sometimes], [0, 1]).refused
    assert set(verify(whole, [sometimes], [0, 1, 2]).refused) == {"sometimes"}


def test_variants_take_turns_at_going_first() -> None:
    log: list[tuple[str, int]] = []
    variants = _variants(log, a=0.0, b=0.0, c=0.0)
    timings = verify(variants[0], variants[1:], [0])
    log.clear()
    time_blocks(variants, [[0], [1], [2]], timings)
    warm_up, timed = log[:3], log[3:]
    assert warm_up == [("a", 0), ("b", 0), ("c", 0)]
    assert [name for name, _ in timed] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [number for _, number in timed] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [len(blocks) for blocks in timings.blocks.values()] == [3, 3, 3]


def test_a_costly_variant_can_run_fewer_requests_of_each_block() -> None:
    log: list[tuple[str, int]] = []
    costly = Variant("costly", Recorded(log, "costly"), tolerance=1e-5, requests_per_block=1)
    timings = verify(costly, [], [0])
    time_blocks([costly], [[0, 1, 2], [3, 4, 5]], timings)
    assert timings.latency("costly").count == 2
    assert log[-2:] == [("costly", 0), ("costly", 3)]


def test_first_requests_of_blocks_are_spread_over_the_sizes() -> None:
    sizes = [70, 10, 90, 30, 50, 20, 100, 40, 80, 60]
    blocks = spread_blocks(sizes, 5)
    assert [sizes[block[0]] for block in blocks] == [20, 40, 60, 80, 100]
    assert sorted(number for block in blocks for number in block) == list(range(10))
    assert {len(block) for block in blocks} == {2}


def test_as_many_blocks_as_requests_are_one_each() -> None:
    assert spread_blocks([3, 1, 2], 3) == [[1], [2], [0]]
