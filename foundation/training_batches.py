"""Which windows of which profiles make up each training step: a pure function of data, seed and epoch.

Letters: W training profiles, B windows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.split import SplitProfiles, training_lengths
from foundation.window import WindowConfig, window_start

# Windows are sorted by length before they are cut into batches. Lengths are first blurred by so much, so that
# the same profiles don't meet in every epoch; it costs attention a few percent of padding.
LENGTH_BLUR = 0.1


@dataclass(frozen=True)
class BatchConfig:
    """How large a training step is.

    Attributes:
        tokens_per_batch: packed tokens of a training step, to within one window.
    """

    tokens_per_batch: int = 3_000

    def __post_init__(self) -> None:
        if self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch is {self.tokens_per_batch}; it must be at least 1")


class TrainingHistories(NamedTuple):
    """The events that the foundation model may learn from: one range of event rows per training profile."""

    first_row: NDArray[np.int64]  # [W], row of the profile's first event in the dataset
    num_events: NDArray[np.int64]  # [W], events before the cut, at least 1


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
        """B times the longest sequence: what attention works on."""
        return int((self.stops - self.starts).max()) * len(self.starts)


def training_histories(dataset: SplitProfiles) -> TrainingHistories:
    """The events that each profile may be trained on; profiles with none are left out."""
    cut = training_lengths(dataset)
    kept = cut > 0
    return TrainingHistories(np.asarray(dataset.offsets[:-1], dtype=np.int64)[kept], cut[kept])


def draw_windows(histories: TrainingHistories, window: WindowConfig, rng: np.random.Generator) -> Batch:
    """One window per profile, its start a random multiple of the block, the latest start included.

    A window holds the tokens that a request sees at most: `window.window` history events and one more.
    """
    latest = window_start(histories.num_events - 1, window.window, window.block)
    starts = rng.integers(0, latest // window.block + 1) * window.block
    stops = np.minimum(histories.num_events, starts + window.window + 1)
    return Batch(histories.first_row + starts, histories.first_row + stops)


def epoch_batches(
    histories: TrainingHistories, window: WindowConfig, tokens_per_batch: int, seed: int, epoch: int
) -> list[Batch]:
    """The batches of an epoch in the order they are trained on; each window is in exactly one of them.

    Windows of similar length share a batch, which keeps padding low; the order of batches is random.
    """
    rng = np.random.default_rng([seed, epoch])
    windows = draw_windows(histories, window, rng)
    lengths = windows.stops - windows.starts
    blurred = lengths * rng.uniform(1 - LENGTH_BLUR, 1 + LENGTH_BLUR, size=len(lengths))
    by_length = np.argsort(blurred, kind="stable")
    ends = np.cumsum(lengths[by_length])
    batch_of = (ends - 1) // tokens_per_batch
    groups = np.split(by_length, np.flatnonzero(np.diff(batch_of)) + 1)
    order = rng.permutation(len(groups))
    return [Batch(windows.starts[groups[i]], windows.stops[groups[i]]) for i in order]


def padding_share(batches: list[Batch]) -> float:
    """Share of the dense grid that is padding, over all batches; in [0, 1)."""
    dense = sum(batch.num_dense_tokens for batch in batches)
    return 1.0 - sum(batch.num_tokens for batch in batches) / dense
