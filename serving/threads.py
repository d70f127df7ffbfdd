"""How many threads the served model computes with, and how they idle: always a number, never a library's default."""

from __future__ import annotations

import os
from collections.abc import Mapping

from foundation import TRAINING_SPIN_COUNT

VARIABLE = "MARQUEE_INTRA_OP_THREADS"
"""Set by the launcher in the server's environment."""
SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", 10_000
"""How long OpenMP's idle threads spin before they sleep: long enough for what lies between two operators of a request.

In a quiet process the reference workload's candidates take 0.91 ms with training's 3,000, 0.79 with this, 0.77 with
30,000. Beside two busy processes a request took 12 to 14 ms of CPU time with either of the first two."""


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def intra_op_threads(environment: Mapping[str, str]) -> int:
    """Threads asked for in an environment, all available cores without one.

    Raises:
        ValueError: the variable is not a whole number above 0.
    """
    text = environment.get(VARIABLE)
    if text is None:
        return available_cores()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{VARIABLE} is {text!r}; it must be a whole number above 0")
    return int(text)


def spin_count(environment: Mapping[str, str]) -> str:
    """What the environment asks for; where that is nothing, or what `foundation` set for training, `SPIN_COUNT`."""
    asked_for = environment.get(SPIN_VARIABLE, TRAINING_SPIN_COUNT)
    return str(SPIN_COUNT) if asked_for == TRAINING_SPIN_COUNT else asked_for
