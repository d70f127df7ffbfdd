"""Which events of a history the decoder sees. NumPy only, so that a thin client can use it too.

Shapes: B sequences, T packed rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class WindowConfig:
    """Histories keep at most `window` events, and drop older ones `block` at a time.

    Raises:
        ValueError: unless 1 <= block <= window.
    """

    window: int = 200
    block: int = 40

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be >= 1 event, got {self.window}")
        if not 1 <= self.block <= self.window:
            raise ValueError(f"block must be between 1 and window = {self.window} events, got {self.block}")


def window_start(num_events: ArrayLike, window: int, block: int) -> NDArray[np.int64]:
    """The first event kept of a profile with `num_events` events so far.

    start(n) = max(0, ceil((n - window) / block) * block). It moves once in `block` events, so that a computed prefix
    stays valid meanwhile; between window - block + 1 and window events are kept of a longer history.

    Args:
        num_events: integers of any shape.
        window: most events kept.
        block: events dropped at a time.

    Returns:
        int64 of the same shape.
    """
    beyond = np.asarray(num_events, dtype=np.int64) - window
    return np.maximum(0, -(-beyond // block) * block)


class Span(NamedTuple):
    """Ranges of rows laid end to end."""

    rows: NDArray[np.int64]  # [T]
    previous: NDArray[np.int64]  # [T], the row before within the same range; -1 at its start
    lengths: NDArray[np.int64]  # [B]


def span_rows(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Span:
    """The rows `starts[b] .. stops[b] - 1` of every range b, laid end to end.

    Args:
        starts: `[B]`, first row of each range.
        stops: `[B]`, one past its last row; equal to the start for an empty range.

    Raises:
        ValueError: if a range stops before it starts.
    """
    starts, stops = np.asarray(starts, dtype=np.int64), np.asarray(stops, dtype=np.int64)
    lengths = stops - starts
    if (lengths < 0).any():
        worst = int(lengths.argmin())
        raise ValueError(f"range {worst} stops at row {stops[worst]}, before its start {starts[worst]}")
    first = np.cumsum(lengths) - lengths
    rows = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - first, lengths)
    previous = rows - 1
    previous[first[lengths > 0]] = -1
    return Span(rows, previous, lengths)
