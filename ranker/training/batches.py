"""Batches of requests: a dataset looked up once, then rows of it.

Shapes: B requests, C candidates over the batch, T packed tokens, N tasks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.tokens import EventIds
from foundation.vocabulary import OUT_OF_VOCABULARY
from foundation.window import span_rows, window_start
from ranker.features.builder import FeatureBuilder
from ranker.features.inputs import ProfileFeatures, TokenizedHistories
from ranker.model import RankerInputs
from ranker.requests.request import Requests
from ranker.training.targets import Targets

BATCHES_PER_WINDOW = 8


class BatchBuilder:
    """Turns requests into model inputs; all events and profiles are looked up at construction, once.

    Args:
        dataset: whose requests.
        features: of the ranker. What it makes here of a request is what it makes of the same request in raw
            values.
    """

    def __init__(self, dataset: Dataset, features: FeatureBuilder) -> None:
        events = dataset.events
        self.features = features
        self._offsets = dataset.offsets
        self._events = features.tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
        self._profiles = features.profile_features(dataset.profiles.features, dataset.num_profiles)

    def inputs(self, requests: Requests) -> RankerInputs:
        """Model inputs of requests, which keep their order."""
        start = self._history_start(requests)
        span = span_rows(start, requests.history_end)
        profile = self.features.assemble(
            TokenizedHistories(
                history=EventIds(*(column[span.rows] for column in self._events)),
                history_offsets=np.concatenate(([0], np.cumsum(span.lengths))),
                num_events_before=start - self._offsets[requests.profile],
                request=self.features.tokenizer.request_ids(requests.timestamp, requests.facets),
                profile=ProfileFeatures(
                    self._profiles.sparse[requests.profile], self._profiles.dense[requests.profile]
                ),
            )
        )
        candidates = self.features.candidate_inputs(
            requests.candidate_id, np.diff(requests.candidate_offsets)
        )
        return RankerInputs(profile, candidates)

    def targets(self, requests: Requests, tokens_per_request: int) -> Targets:
        """Labels, and the item after each of the newest `tokens_per_request` tokens of each request."""
        span = span_rows(self._history_start(requests), requests.history_end + 1)
        ends = np.cumsum(span.lengths)
        is_known = np.ones(len(span.rows), dtype=bool)
        # A request at the end of its profile's log has no next event: the row there is another profile's.
        is_known[ends[requests.history_end == self._offsets[requests.profile + 1]] - 1] = False
        age = np.repeat(ends, span.lengths) - 1 - np.arange(len(span.rows))
        is_known &= age < tokens_per_request
        rows = np.where(is_known, span.rows, 0)
        next_item = np.where(is_known, self._events.item[rows], OUT_OF_VOCABULARY)
        return Targets(
            torch.from_numpy(requests.labels),
            torch.from_numpy(requests.mask),
            torch.arange(len(next_item)),
            torch.from_numpy(next_item),
        )

    def history_lengths(self, requests: Requests) -> NDArray[np.int64]:
        """Events of each request's window `[B]`."""
        return requests.history_end - self._history_start(requests)

    def _history_start(self, requests: Requests) -> NDArray[np.int64]:
        window = self.features.config.window
        first = self._offsets[requests.profile]
        return first + window_start(requests.history_end - first, window.window, window.block)


def batch_order(
    lengths: NDArray[np.int64], requests_per_batch: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of requests in the order of an epoch's whole batches, `[batches * requests_per_batch]`.

    Requests are shuffled, sorted by length within windows of some batches, cut into batches, and these shuffled
    within their window: what is batched together has like lengths (little padding), and is still random.

    Args:
        lengths: `[B]` events of each request's history.
        requests_per_batch: at most B; what is left over makes no batch.
        rng: of both shuffles.
    """
    num_batches = len(lengths) // requests_per_batch
    shuffled = rng.permutation(len(lengths))[: num_batches * requests_per_batch]
    window = np.arange(len(shuffled)) // (BATCHES_PER_WINDOW * requests_per_batch)
    batches = shuffled[np.lexsort((lengths[shuffled], window))].reshape(num_batches, requests_per_batch)
    window = np.arange(num_batches) // BATCHES_PER_WINDOW
    return batches[np.lexsort((rng.random(num_batches), window))].flatten()


def rank_share(rank: int, world_size: int) -> slice:
    """Which requests of a batch a rank takes: every one in `world_size`, so that all get like lengths."""
    return slice(rank, None, world_size)
