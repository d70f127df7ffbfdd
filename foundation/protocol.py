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


def describe(
    protocol: ProtocolName, role: Literal["test", "validation"], num_items: int, merged: bool
) -> str:
    """What was ranked, and against what, in words that a figure can be quoted with.

    Args:
        protocol: what was held out.
        role: which of the held-out events was ranked.
        num_items: items of the catalogue, all of which compete.
        merged: adjacent events of one item were merged.
    """
    event = {
        "profiles": f"the last event of each {role} profile, profiles held out of training whole",
        "last": "the last event of every profile, all before it trained on; no validation event held out",
        "last-two": "the last event of every profile; the validation event before it held out of training and "
        "part of the history"
        if role == "test"
        else "the last event but one of every profile, it and the last held out of training",
    }[protocol]
    order = "adjacent events of one item merged; " if merged else ""
    return (
        f"{protocol}: leave one out; {event}; ranked among all {num_items:,} items, history masked; {order}"
        "events ordered by (profile, timestamp), stable in file order; ties in item row order"
    )
