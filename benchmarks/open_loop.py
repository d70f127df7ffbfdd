"""Open-loop load: requests leave by a schedule, whether or not earlier ones have been answered.

Latency counts from the *scheduled* send. A closed loop waits for a slow answer before it sends again, and so never
measures the requests that the stall would have held up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from time import perf_counter, sleep

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OpenLoop:
    """Latencies of one open-loop run.

    Attributes:
        from_schedule_s: `[n]`, answer minus scheduled send.
        from_send_s: `[n]`, answer minus actual send: what a closed loop would have claimed.
        elapsed_s: first scheduled send to last answer.
    """

    from_schedule_s: NDArray[np.float64]
    from_send_s: NDArray[np.float64]
    elapsed_s: float


def arrivals(rate_per_s: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    """Send times of a Poisson process, in seconds from the start, `[count]`.

    Raises:
        ValueError: the rate is not positive or there are no requests.
    """
    if rate_per_s <= 0:
        raise ValueError(f"rate_per_s is {rate_per_s}; it must be above 0 requests per second")
    if count < 1:
        raise ValueError(f"count is {count}; send at least one request")
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_per_s, size=count))


def run_open_loop(senders: Sequence[Callable[[int], object]], schedule_s: NDArray[np.float64]) -> OpenLoop:
    """Send request `i` at `schedule_s[i]` over the first free sender, and wait for all answers.

    With all senders busy a request leaves late, and its wait counts. An error of a sender ends the run.

    Args:
        senders: each computes the request of a number and returns once it is answered; one thread each.
        schedule_s: `[n]` ascending, seconds from the start.
    """
    from_schedule, from_send = np.empty(len(schedule_s)), np.empty(len(schedule_s))
    numbers, lock = iter(range(len(schedule_s))), Lock()
    start = perf_counter()

    def work(send: Callable[[int], object]) -> None:
        for number in _shared(numbers, lock):
            sleep(max(0.0, start + schedule_s[number] - perf_counter()))
            sent = perf_counter()
            send(number)
            answered = perf_counter()
            from_schedule[number] = answered - (start + schedule_s[number])
            from_send[number] = answered - sent

    with ThreadPoolExecutor(len(senders)) as pool:
        for done in [pool.submit(work, send) for send in senders]:
            done.result()
    return OpenLoop(from_schedule, from_send, perf_counter() - start - float(schedule_s[0]))


def _shared(numbers: Iterator[int], lock: Lock) -> Iterator[int]:
    """The iterator's items, each to one of the threads that read it."""
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        yield number
