"""Where requests lie among a dataset's events: whose they are, what came before them, what came after.

Shapes: B requests, C candidates over the batch, P profiles, N events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.raw_values import NO_NUMBER
from foundation.split import profile_roles, training_cut
from ranker.requests.request import ROLE_OF, Which
from ranker.schema import Task

UNKNOWN = -1


class EventIndex:
    """Finds requests among events; everything is sorted once, here.

    Args:
        dataset: whose events.
    """

    def __init__(self, dataset: Dataset) -> None:
        events, num_events = dataset.events, np.diff(dataset.offsets)
        self.dataset = dataset
        self.owner = np.repeat(np.arange(dataset.num_profiles), num_events)
        # Times by their rank, so that (owner, time) is one number whatever the times are.
        merged = () if events.last_action is None else (events.last_action,)
        self._times = np.unique(np.concatenate((events.timestamp, *merged)))
        self._stride = len(self._times) + 1
        self._over = self.owner * self._stride + self.num_before(events.over_at)
        self._order = np.argsort(dataset.profile_ids, kind="stable")
        self._roles = profile_roles(dataset)
        self._cut = dataset.offsets[:-1] + training_cut(num_events)

    @property
    def stride(self) -> int:
        """More than any rank of a time."""
        return self._stride

    def num_before(self, timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many times of the log are before each: the rank of a time that is in it."""
        return np.searchsorted(self._times, timestamp, side="left")

    def profile_rows(self, profile_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of raw profile ids `[B]`, `UNKNOWN` where a profile has no event."""
        ids = self.dataset.profile_ids
        place = np.searchsorted(ids, profile_id, sorter=self._order)
        rows = self._order[np.minimum(place, len(ids) - 1)]
        return np.where(ids[rows] == profile_id, rows, UNKNOWN)

    def history_end(self, profile: NDArray[np.int64], timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
        """Event row `[B]` of each profile's first event that isn't over before the given time.

        An event of the request's own second belongs to its outcome. So does a merged event whose actions lie on both
        sides of the request: what it holds of a later action would tell the outcome.
        """
        wanted = profile * self._stride + self.num_before(timestamp)
        return np.searchsorted(self._over, wanted, side="left")

    def num_straddled(
        self, profile: NDArray[np.int64], history_end: NDArray[np.int64], timestamp: NDArray[np.int64]
    ) -> int:
        """Requests with a merged event that began before them and is not over: it is left out of their history."""
        there = history_end < self.dataset.offsets[profile + 1]
        began = self.dataset.events.timestamp[np.where(there, history_end, 0)]
        return int((there & (began < timestamp)).sum())

    def num_before_cut(self, profile: NDArray[np.int64], history_end: NDArray[np.int64]) -> int:
        """Requests that no part takes, since the decoder was pre-trained on what came of them: see `usable`."""
        return int((history_end < self._cut[profile]).sum())

    def usable(
        self, profile: NDArray[np.int64], history_end: NDArray[np.int64], which: Which
    ) -> NDArray[np.int64]:
        """Rows of the training, validation or test profiles' requests whose outcome no decoder has seen.

        Of a training profile those count whose history reaches the cut, so that every label is of an event behind
        it; of held-out profiles the same, so that what is tested is like what was trained.
        """
        return np.flatnonzero((self._roles[profile] == ROLE_OF[which]) & (history_end >= self._cut[profile]))


class WindowLabels:
    """Labels of a task of kind `window`: did the profile act on the candidate soon after the request?

    Args:
        index: of the dataset.
        task: the window, and maybe a facet's threshold; of a merged event the facet is that of all its actions.
    """

    def __init__(self, index: EventIndex, task: Task) -> None:
        assert task.kind == "window" and task.within_s is not None, task
        events = index.dataset.events
        self.index, self.within_s = index, task.within_s
        self.log_end = int(events.over_at.max())
        counted = np.ones(len(events.item_id), dtype=bool)
        if task.facet is not None and task.at_least is not None:
            values = events.facets[task.facet]
            counted = (values != NO_NUMBER) & (values >= np.float32(task.at_least))
        self._items = np.unique(events.item_id)
        pair = self._pair(index.owner, events.item_id)[counted]
        # Stable: each pair's events stay in the order of time.
        order = np.argsort(pair, kind="stable")
        self._pairs, rank = np.unique(pair[order], return_inverse=True)
        began, over = events.timestamp[counted][order], events.over_at[counted][order]
        self._began = rank * index.stride + index.num_before(began)
        self._over = rank * index.stride + index.num_before(over)

    def labels(
        self, profile: NDArray[np.int64], item_id: NDArray[np.int64], timestamp: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Labels and mask `[C]`; no label where the log ends before the window does.

        Not even where the profile acted before that: of such windows only the positive ones would be known.

        Args:
            profile: `[C]` rows of profiles.
            item_id: `[C]` raw ids.
            timestamp: `[C]` of the candidates' requests, unix seconds.
        """
        pair = self._pair(profile, item_id)
        rank = np.searchsorted(self._pairs, pair)
        known = np.append(self._pairs, UNKNOWN)[rank] == pair
        first = rank * self.index.stride + self.index.num_before(timestamp)
        # Times are whole seconds: up to and with a second is before the next.
        last = rank * self.index.stride + self.index.num_before(timestamp + self.within_s + 1)
        acted = known & (np.searchsorted(self._began, last) > np.searchsorted(self._over, first))
        whole = timestamp + self.within_s <= self.log_end
        return (acted & whole).astype(np.float32), whole

    def _pair(self, profile: NDArray[np.int64], item_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """One number for each (profile, item); -2 where no event is on the item."""
        place = np.minimum(np.searchsorted(self._items, item_id), len(self._items) - 1)
        found = self._items[place] == item_id
        return np.where(found, profile * len(self._items) + place, UNKNOWN - 1)
