"""Open-loop latencies count from the schedule, so that a stall shows in every request it held up."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier
from time import sleep

import numpy as np
import pytest

from benchmarks.open_loop import arrivals, run_open_loop

STALL_S = 0.15


def _stalls_first(sent: list[int]) -> Callable[[int], None]:
    def send(number: int) -> None:
        sent.append(number)
        if number == 0:
            sleep(STALL_S)

    return send


def test_a_stall_counts_against_every_request_behind_it() -> None:
    sent: list[int] = []
    schedule = np.array([0.0, 0.01, 0.02, STALL_S + 0.1])
    result = run_open_loop([_stalls_first(sent)], schedule)
    assert sent == [0, 1, 2, 3]
    # Requests 1 and 2 waited for the stalled one, though each was answered at once when sent.
    assert result.from_schedule_s[1] >= STALL_S - 0.01
    assert result.from_schedule_s[2] >= STALL_S - 0.02
    assert result.from_send_s[1] < STALL_S / 2
    # Request 3 was due only after the stall.
    assert result.from_schedule_s[3] < STALL_S / 2
    assert (result.from_schedule_s >= result.from_send_s).all()
    assert result.elapsed_s >= STALL_S + 0.1


def test_no_request_leaves_before_its_time() -> None:
    result = run_open_loop([lambda number: None], np.array([0.05, 0.1]))
    assert (result.from_schedule_s >= 0).all()
    assert result.elapsed_s >= 0.05


def test_senders_overlap() -> None:
    together = Barrier(2, timeout=5)
    run_open_loop([lambda number: together.wait(), lambda number: together.wait()], np.zeros(2))


def test_a_failed_request_fails_the_run() -> None:
    def refuse(number: int) -> None:
        raise ConnectionError(f"request {number}")

    with pytest.raises(ConnectionError, match="request 0"):
        run_open_loop([refuse], np.zeros(1))


def test_arrivals_are_seeded_rising_and_of_the_asked_rate() -> None:
    times = arrivals(50, 4_000, seed=3)
    assert (np.diff(times) >= 0).all() and times[0] > 0
    np.testing.assert_array_equal(times, arrivals(50, 4_000, seed=3))
    assert times[-1] == pytest.approx(4_000 / 50, rel=0.1)


@pytest.mark.parametrize(("rate", "count", "field"), [(0, 1, "rate_per_s is 0"), (1, 0, "count is 0")])
def test_arrivals_name_what_is_wrong(rate: float, count: int, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        arrivals(rate, count)
