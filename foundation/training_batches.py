"""Which windows of which profiles make up each training step: a pure function of data, seed and epoch.

How many processes share the steps plays no part in it. Letters: W training profiles, B windows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.split import SplitProfiles, training_lengths
from foundation.window import WindowConfig, window_start

# Windows are sorted by length before they are cut into batches. Lengths are first blurred by so much, so that
# the same profiles don't meet in every epoch; it costs attention about so much padding.
LENGTH_BLUR = 0.05
# A profile's windows step through its history by this share of it (mod 1), epoch after epoch: the sequence
# whose points, however many, leave the smallest gaps.
_GOLDEN_STEP = (5**0.5 - 1) / 2
# What a stream of random numbers is for. Numbered from above: NumPy takes [seed], [seed, 0] and [seed, 0, 0] for the
# same seed.
_ORDER, _FIRST_PLACES, _LATEST = 101, 102, 103


@dataclass(frozen=True)
class BatchConfig:
    """How large a training step is, and which windows an epoch shows.

    Attributes:
        tokens_per_batch: packed tokens of a training step, to within one window.
        parts: a step is worked on in so many parts, which processes share; a multiple of their number. Fewer are
            faster.
        latest_share: of an epoch's profiles that show their latest window instead of one somewhere in their
            history.
        progressive: windows (events) of equal shares of the epochs, growing; empty for the model's window.
    """

    tokens_per_batch: int = 3_000
    parts: int = 1
    latest_share: float = 0.0
    progressive: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "parts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.latest_share <= 1:
            raise ValueError(f"latest_share is {self.latest_share}; it must be in [0, 1]")
        if any(a >= b for a, b in zip((0, *self.progressive), self.progressive, strict=False)):
            raise ValueError(f"progressive is {self.progressive}; windows must be at least 1 event and grow")

    def window(self, window: WindowConfig, epoch: int, epochs: int) -> WindowConfig:
        """The window that `epoch` (from 0, of `epochs`) trains on; `window` is the model's."""
        if not self.progressive:
            return window
        events = self.progressive[epoch * len(self.progressive) // epochs]
        return WindowConfig(events, min(window.block, events))


class TrainingHistories(NamedTuple):
    """The events that the foundation model may learn from: one range of event rows per training profile."""

    first_row: NDArray[np.int64]  # [W], row of the profile's first event in the dataset
    num_events: NDArray[np.int64]  # [W], events before the cut, at least 1

    def of(self, rows: NDArray[np.int64]) -> Batch:
        """All events that may be learned from, of the profiles that event rows `[B]` belong to."""
        profile = np.searchsorted(self.first_row, rows, side="right") - 1
        return Batch(self.first_row[profile], self.first_row[profile] + self.num_events[profile])


class Batch(NamedTuple):
    """Ranges of event rows, one per sequence of a training step."""

    starts: NDArray[np.int64]  # [B]
    stops: NDArray[np.int64]  # [B]

    @property
    def num_tokens(self) -> int:
        """Packed tokens T."""
        return int((self.stops - self.starts).sum())

    @property
    def num_dense_tokens(self) -> int:
        """B times the longest sequence: what attention works on; 0 without sequences."""
        return int((self.stops - self.starts).max(initial=0)) * len(self.starts)

    def parts(self, count: int) -> list[Batch]:
        """Cuts the batch into `count` parts of about equal tokens, each of similar lengths.

        A part is empty where there are too few sequences.
        """
        lengths = self.stops - self.starts
        by_length = np.argsort(lengths, kind="stable")
        ends = np.cumsum(lengths[by_length])
        middles = 2 * ends - lengths[by_length]
        part_of = middles * count // (2 * max(1, self.num_tokens))
        bounds = np.searchsorted(part_of, np.arange(count + 1))
        rows = [by_length[first:stop] for first, stop in pairwise(bounds)]
        return [Batch(self.starts[each], self.stops[each]) for each in rows]


def training_histories(dataset: SplitProfiles) -> TrainingHistories:
    """The events that each profile may be trained on; profiles with none are left out."""
    cut = training_lengths(dataset)
    kept = cut > 0
    return TrainingHistories(np.asarray(dataset.offsets[:-1], dtype=np.int64)[kept], cut[kept])


def draw_windows(
    histories: TrainingHistories, window: WindowConfig, seed: int, epoch: int, latest_share: float = 0.0
) -> Batch:
    """One window per profile, its start a multiple of the block, the latest start included.

    A window holds the tokens that a request sees at most: `window.window` history events and one more. From
    epoch to epoch a profile's windows are spread evenly over its history, from a random first one, so that
    few epochs cover it whole; `latest_share` of the profiles, drawn anew each epoch, show the latest instead.
    """
    num_profiles = len(histories.num_events)
    first = np.random.default_rng([seed, 0, _FIRST_PLACES]).random(num_profiles)
    shows_latest = np.random.default_rng([seed, epoch, _LATEST]).random(num_profiles) < latest_share
    latest = window_start(histories.num_events - 1, window.window, window.block)
    place = (first + epoch * _GOLDEN_STEP) % 1.0
    starts = (place * (latest // window.block + 1)).astype(np.int64) * window.block
    starts = np.where(shows_latest, latest, starts)
    stops = np.minimum(histories.num_events, starts + window.window + 1)
    return Batch(histories.first_row + starts, histories.first_row + stops)


def epoch_batches(
    histories: TrainingHistories,
    window: WindowConfig,
    tokens_per_batch: int,
    seed: int,
    epoch: int,
    latest_share: float = 0.0,
) -> list[Batch]:
    """The batches of an epoch in the order they are trained on; each window is in exactly one of them.

    Windows of similar length share a batch, which keeps padding low; the order of batches is random.
    """
    windows = draw_windows(histories, window, seed, epoch, latest_share)
    rng = np.random.default_rng([seed, epoch, _ORDER])
    lengths = windows.stops - windows.starts
    blurred = lengths * rng.uniform(1 - LENGTH_BLUR, 1 + LENGTH_BLUR, size=len(lengths))
    by_length = np.argsort(blurred, kind="stable")
    ends = np.cumsum(lengths[by_length])
    batch_of = (ends - 1) // tokens_per_batch
    groups = np.split(by_length, np.flatnonzero(np.diff(batch_of)) + 1)
    order = rng.permutation(len(groups))
    return [Batch(windows.starts[groups[i]], windows.stops[groups[i]]) for i in order]


def padding_share(batches: Iterable[Batch], parts: int = 1) -> float:
    """Share of the dense grids that is padding, over all batches, each worked on in `parts`; in [0, 1)."""
    pieces = [piece for batch in batches for piece in batch.parts(parts)]
    dense = sum(piece.num_dense_tokens for piece in pieces)
    return 1.0 - sum(piece.num_tokens for piece in pieces) / max(1, dense)
