"""Which rows make up each training step: a pure function of row counts, settings, seed and step.

A step's batch is made by *lanes*, and processes share the lanes: how many processes there are changes nothing but who
reads what. A lane owns a run of an epoch's shuffled row groups, which it reads window by window:

    row groups of a draw ──shuffle──▶ lane 0 | lane 1 | …       a row group on a border belongs to both, in part
    lane ──cut──▶ windows ──shuffle rows, sort by length in spans of batches, shuffle batches──▶ its share of each step

The shuffle of batches is common to all lanes: their shares of a step are of like lengths, and so is their sum.

Shapes: G row groups of a draw, S steps of a window, W rows of a lane's window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Rows are sorted by length within spans of so many batches: longer ones pad less and repeat their company more.
BATCHES_PER_SPAN = 16
# What a stream of random numbers is for. Numbered from above: NumPy takes [seed] and [seed, 0] for the same seed.
_GROUPS, _ROWS, _BATCHES = 201, 202, 203


@dataclass(frozen=True)
class PlanConfig:
    """How rows become batches.

    Attributes:
        lanes: independent readers that a batch is put together from; the number of processes must divide it.
        shuffle_requests: requests in memory at a time, over all processes, to be shuffled; several row groups of
            each lane, lest neighbours on disk stay neighbours.
    """

    lanes: int = 8
    shuffle_requests: int = 16_384

    def __post_init__(self) -> None:
        for name in ("lanes", "shuffle_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Window(NamedTuple):
    """Steps whose rows each lane shuffles together."""

    epoch: int
    index: int
    """Within the epoch."""
    first_step: int
    """Within the epoch."""
    num_steps: int


class Piece(NamedTuple):
    """Rows `first` to `last` of a row group."""

    group: int
    first: int
    last: int


class Plan:
    """All steps of a run.

    Args:
        group_sizes: for each draw, rows of its row groups `[G]`; epoch `e` reads draw `e % len(group_sizes)`.
        requests_per_batch: requests of an optimizer step, over all processes, at least 1.
        seed: of all shuffles, at least 0.
        config: settings.

    Attributes:
        batch_size: requests of a step: those asked for, or as many as the smallest draw has.
        steps_per_epoch: of every epoch; what is left over makes no batch, and is other rows in every epoch.

    Raises:
        ValueError: there is no draw, or one without rows.
    """

    def __init__(
        self, group_sizes: Sequence[NDArray[np.int64]], requests_per_batch: int, seed: int, config: PlanConfig
    ) -> None:
        rows = [int(np.sum(sizes)) for sizes in group_sizes]
        if min(rows, default=0) < 1:
            raise ValueError(f"draws have {rows} rows; there must be a draw, and each must have rows")
        self.config = config
        self.seed = seed
        self.group_sizes = [np.asarray(sizes, dtype=np.int64) for sizes in group_sizes]
        self.batch_size = min(requests_per_batch, *rows)
        self.steps_per_epoch = min(rows) // self.batch_size
        # Whole spans, so that every batch but an epoch's last few is sorted among as many.
        spans = max(1, config.shuffle_requests // (self.batch_size * BATCHES_PER_SPAN))
        self._steps_per_window = spans * BATCHES_PER_SPAN

    def draw(self, epoch: int) -> int:
        """The draw that `epoch` (from 0) reads."""
        return epoch % len(self.group_sizes)

    def quota(self, lane: int) -> int:
        """Requests of each batch that come from `lane`; those of two lanes differ by one at most."""
        return len(range(lane, self.batch_size, self.config.lanes))

    def window(self, step: int) -> Window:
        """The window that holds `step` of the run (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        index = place // self._steps_per_window
        first = index * self._steps_per_window
        return Window(epoch, index, first, min(self._steps_per_window, self.steps_per_epoch - first))

    def pieces(self, lane: int, window: Window) -> list[Piece]:
        """What a lane reads for a window: W = S * quota rows, in a run of the epoch's shuffled row groups."""
        sizes = self.group_sizes[self.draw(window.epoch)]
        order = self._rng(_GROUPS, window.epoch).permutation(len(sizes))
        ends = np.cumsum(sizes[order])
        lane_first = self.steps_per_epoch * sum(self.quota(other) for other in range(lane))
        first = lane_first + window.first_step * self.quota(lane)
        last = first + window.num_steps * self.quota(lane)
        pieces = []
        if first == last:
            return pieces
        for place in range(int(np.searchsorted(ends, first, side="right")), len(order)):
            start = int(ends[place] - sizes[order[place]])
            if start >= last:
                break
            piece = Piece(
                int(order[place]), max(first - start, 0), min(last - start, int(sizes[order[place]]))
            )
            if piece.first < piece.last:
                pieces.append(piece)
        return pieces

    def order(self, lane: int, window: Window, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Which of a lane's rows make its share of each step of a window: S arrays of rows.

        Args:
            lane: with a quota.
            window: of the run.
            lengths: `[W]` history lengths of the lane's rows, at least one. Where rows could not be read there are
                fewer than planned: shares get smaller, and where one would be empty it shows a row again.
        """
        rows = self._rng(_ROWS, window.epoch, lane, window.index).permutation(len(lengths))
        bounds = np.arange(window.num_steps + 1) * len(rows) // window.num_steps
        common = self._rng(_BATCHES, window.epoch, window.index)
        shares: list[NDArray[np.int64]] = []
        for first in range(0, window.num_steps, BATCHES_PER_SPAN):
            last = min(first + BATCHES_PER_SPAN, window.num_steps)
            span = rows[bounds[first] : bounds[last]]
            span = span[np.argsort(lengths[span], kind="stable")]
            within = bounds - bounds[first]
            found = [span[within[step] : within[step + 1]] for step in range(first, last)]
            shares += [found[place] for place in common.permutation(last - first)]
        return [
            share if len(share) else rows[[bounds[step] % len(rows)]] for step, share in enumerate(shares)
        ]

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *purpose))
