"""How many threads the served model computes with, and how they idle: always a number, never a library's default."""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "MARQUEE_INTRA_OP_THREADS"
"""Set by the launcher in the server's environment."""
SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", 3000
"""How long OpenMP's idle threads spin before they sleep: as in training, see `foundation`."""


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
