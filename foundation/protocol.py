"""Protocols: what is held out of training, and so what a figure may be compared with.

    profiles   10 % of the profiles for tests and 5 % for validation, whole; of the others the first 80 % train.
    last       all profiles train, on all but their last event, which is the test (the published tables).
    last-two   all profiles train, on all but their last two events: the last is the test, the one before it the
               validation event, on which settings are chosen.

An event is held out only where it has a history, so a profile's first event always trains under the last two:
a profile with one event has no test, one with two has a test and no validation event.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

ProtocolName = Literal["profiles", "last", "last-two"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

NUM_HELD_OUT: dict[ProtocolName, int] = {"profiles": 0, "last": 1, "last-two": 2}
"""Events at the end of every profile's history that its training does without."""


def check_protocol_name(name: str) -> None:
    """Raises ValueError unless `name` is one of `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is {name!r}; it must be one of {', '.join(PROTOCOLS)}")


def all_but_last(num_events: np.ndarray, protocol: ProtocolName) -> np.ndarray:
    """Of profiles with `num_events` `[P]` events, how many come before those that `protocol` holds out, `[P]`."""
    num_events = np.asarray(num_events, dtype=np.int64)
    return np.maximum(np.minimum(num_events, 1), num_events - NUM_HELD_OUT[protocol])
