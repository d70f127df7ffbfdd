"""Looked-up events, and the packed tokens that a decoder reads.

Shapes: N events, B sequences, T packed tokens, Fr request-side and Fo outcome-side facet columns, F = Fr + 1 + Fo.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class EventIds(NamedTuple):
    """Events after vocabulary lookup; facets already are rows of the joint facet table."""

    item: NDArray[np.int64]  # [N], item rows
    timestamp: NDArray[np.int64]  # [N], unix seconds
    request_side: NDArray[np.int64]  # [N, Fr], when and where: known as the event begins
    outcome_side: NDArray[np.int64]  # [N, Fo], what: known only once it is over


class Tokens(NamedTuple):
    """A packed ragged batch of tokens."""

    facet_ids: NDArray[np.int64]  # [T, F], rows of the joint facet table, 0 where there is no value
    item_ids: NDArray[np.int64]  # [T], item row of the event before, or START
    lengths: NDArray[np.int64]  # [B], tokens of each sequence


def concatenate(first: EventIds, second: EventIds) -> EventIds:
    """The events of `first`, then those of `second`."""
    return EventIds(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
