"""Requests in raw values to request rows, with the feature builder that serving uses.

Shapes: B requests, T history events over the batch, C candidates over the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.tokens import EventIds
from foundation.vocabulary import OUT_OF_VOCABULARY
from foundation.window import span_rows, window_start
from ranker.features.builder import FeatureBuilder
from ranker.features.inputs import ProfileFeatures, TokenizedHistories
from ranker.requests.request import Requests
from ranker.rows.rows import Rows, take_events


class RowMaker:
    """Makes rows of a dataset's requests; all events and profiles are looked up at construction, once.

    Args:
        dataset: whose requests.
        features: of the ranker. What it makes here of a request is what it makes of the same request in raw values.
    """

    def __init__(self, dataset: Dataset, features: FeatureBuilder) -> None:
        events = dataset.events
        self.features = features
        self._profile_ids = dataset.profile_ids
        self._offsets = dataset.offsets
        self._events = features.tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
        self._profiles = features.profile_features(dataset.profiles.features, dataset.num_profiles)

    def rows(self, requests: Requests) -> Rows:
        """Rows of requests, which keep their order."""
        start = self._history_start(requests)
        span = span_rows(start, requests.history_end)
        histories = TokenizedHistories(
            history=take_events(self._events, span.rows),
            history_offsets=np.concatenate(([0], np.cumsum(span.lengths))),
            num_events_before=start - self._offsets[requests.profile],
            request=self.features.tokenizer.request_ids(requests.timestamp, requests.facets),
            profile=ProfileFeatures(
                self._profiles.sparse[requests.profile], self._profiles.dense[requests.profile]
            ),
        )
        return Rows(
            profile_id=self._profile_ids[requests.profile],
            histories=histories,
            next_event=self._next_event(requests, histories.request),
            candidate_offsets=requests.candidate_offsets,
            item_rows=self.features.candidate_rows(requests.candidate_id),
            candidates=self.features.config.candidates.look_up(
                requests.candidate_features, len(requests.candidate_id)
            ),
            labels=requests.labels,
            mask=requests.mask,
        )

    def _next_event(self, requests: Requests, context: EventIds) -> EventIds:
        """The event at each history's end; where it is the end of the log, the request itself, without an item."""
        there = requests.history_end < self._offsets[requests.profile + 1]
        found = take_events(self._events, np.where(there, requests.history_end, 0))
        return EventIds(
            np.where(there, found.item, OUT_OF_VOCABULARY),
            np.where(there, found.timestamp, context.timestamp),
            np.where(there[:, None], found.request_side, context.request_side),
            np.where(there[:, None], found.outcome_side, context.outcome_side),
        )

    def _history_start(self, requests: Requests) -> NDArray[np.int64]:
        window = self.features.config.window
        first = self._offsets[requests.profile]
        return first + window_start(requests.history_end - first, window.window, window.block)
