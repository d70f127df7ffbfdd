"""Request rows: everything that training or testing needs of a request, after vocabulary lookup.

Shapes: B requests, T history events over the batch, C candidates over the batch, N tasks, F columns.

The profile's side (history, features, context) is there once per request, the candidates are jagged beside it: nothing
is repeated per candidate, neither here nor on disk (`ranker.rows.parquet`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.raw_values import NO_VALUE
from foundation.time_facets import SECONDS_PER_DAY
from foundation.tokens import EventIds
from foundation.window import span_rows
from ranker.features.candidate_features import CandidateColumns
from ranker.features.inputs import ProfileFeatures, TokenizedHistories


@dataclass(frozen=True)
class Rows:
    """B requests."""

    profile_id: NDArray[np.int64]
    """`[B]` raw ids."""
    histories: TokenizedHistories
    """What the profile half reads."""
    next_event: EventIds
    """`[B]` what the profile did next, for the sequence objectives; item 0 where nothing is known of it."""
    candidate_offsets: NDArray[np.int64]
    """`[B + 1]`: request `b` owns candidates `candidate_offsets[b]` to `candidate_offsets[b + 1]`."""
    item_rows: NDArray[np.int64]
    """`[C]` item rows, 0 where the vocabulary lacks the item."""
    candidates: CandidateColumns
    """`[C]` features that they have in this request only."""
    labels: NDArray[np.float32]
    """`[C, N]`, 0 or 1; 0 where there is none."""
    mask: NDArray[np.bool_]
    """`[C, N]`, whether there is a label."""

    def __len__(self) -> int:
        """B."""
        return len(self.profile_id)

    @property
    def history_lengths(self) -> NDArray[np.int64]:
        """Events of each request's window `[B]`."""
        return np.diff(self.histories.history_offsets)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """The requests at `rows`, in that order."""
        old = self.histories
        events = span_rows(old.history_offsets[rows], old.history_offsets[rows + 1])
        candidates = span_rows(self.candidate_offsets[rows], self.candidate_offsets[rows + 1])
        histories = TokenizedHistories(
            take_events(old.history, events.rows),
            _offsets(events.lengths),
            old.num_events_before[rows],
            take_events(old.request, rows),
            ProfileFeatures(old.profile.sparse[rows], old.profile.dense[rows]),
        )
        return Rows(
            self.profile_id[rows],
            histories,
            take_events(self.next_event, rows),
            _offsets(candidates.lengths),
            self.item_rows[candidates.rows],
            CandidateColumns(self.candidates.sparse[candidates.rows], self.candidates.dense[candidates.rows]),
            self.labels[candidates.rows],
            self.mask[candidates.rows],
        )


def days_since_launch(rows: Rows, launched_at: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """How old each candidate's title is at its request, `[C]`; infinite where its launch is unknown.

    Args:
        rows: B requests.
        launched_at: unix seconds of each item row, `Vocabularies.launched_at`; None: launches are unknown.
    """
    if launched_at is None:
        return np.full(len(rows.item_rows), np.inf)
    launched = launched_at[rows.item_rows]
    is_known = launched != NO_VALUE
    now = np.repeat(rows.histories.request.timestamp, np.diff(rows.candidate_offsets))
    return np.where(is_known, (now - np.where(is_known, launched, 0)) / SECONDS_PER_DAY, np.inf)


def join(parts: list[Rows]) -> Rows:
    """The requests of several rows, one after another; at least one part.

    Raises:
        ValueError: there is none.
    """
    if not parts:
        raise ValueError("join needs at least one part")
    histories = [part.histories for part in parts]
    joined = TokenizedHistories(
        _join_events([each.history for each in histories]),
        _offsets(np.concatenate([part.history_lengths for part in parts])),
        np.concatenate([each.num_events_before for each in histories]),
        _join_events([each.request for each in histories]),
        ProfileFeatures(
            *(np.concatenate(columns) for columns in zip(*(h.profile for h in histories), strict=True))
        ),
    )
    return Rows(
        np.concatenate([part.profile_id for part in parts]),
        joined,
        _join_events([part.next_event for part in parts]),
        _offsets(np.concatenate([np.diff(part.candidate_offsets) for part in parts])),
        np.concatenate([part.item_rows for part in parts]),
        CandidateColumns(
            *(np.concatenate(columns) for columns in zip(*(p.candidates for p in parts), strict=True))
        ),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.mask for part in parts]),
    )


def take_events(events: EventIds, rows: NDArray[np.int64]) -> EventIds:
    """The events at `rows`."""
    return EventIds(*(column[rows] for column in events))


def _join_events(parts: list[EventIds]) -> EventIds:
    return EventIds(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
