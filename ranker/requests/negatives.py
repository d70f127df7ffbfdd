"""Sampled candidates that a profile has not met: half of them uniform, half by popularity.

Shapes: B requests, I items of the catalogue, W most samples of a request.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.split import training_mask
from foundation.vocabulary import FIRST_KNOWN, Vocabulary

# Rejected draws are drawn again so many times; what is still missing is drawn from the list of what is left.
MAX_ROUNDS = 12
_FREE = -1


def training_popularity(dataset: Dataset) -> NDArray[np.int64]:
    """Events of each item of the catalogue `[I]` that the foundation model may train on, and no other."""
    rows = Vocabulary(dataset.catalogue.item_id).lookup(dataset.events.item_id[training_mask(dataset)])
    return np.bincount(rows, minlength=FIRST_KNOWN + dataset.num_items)[FIRST_KNOWN:]


class NegativeSampler:
    """Draws items of the catalogue that a profile has not met up to some point of its history.

    Every second one is uniform, the others are drawn by the number of training events of the item; none is
    drawn twice for one request. What a profile meets *later* can be drawn: leaving it out would tell the
    future.

    Args:
        dataset: whose catalogue and events.

    Attributes:
        first_meetings: ascending event rows, each the first of its profile with an item of the catalogue.
        popularity: `[I]`, see `training_popularity`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.num_items = dataset.num_items
        num_events = np.diff(dataset.offsets)
        rows = Vocabulary(dataset.catalogue.item_id).lookup(dataset.events.item_id) - FIRST_KNOWN
        profile = np.repeat(np.arange(dataset.num_profiles), num_events)
        known = np.flatnonzero(rows >= 0)
        # Of each (profile, item) the first event: it was met before a point if that event was.
        self._met, first = np.unique(profile[known] * self.num_items + rows[known], return_index=True)
        self._met_first = known[first]
        self.first_meetings = np.sort(self._met_first)
        self.popularity = training_popularity(dataset)
        self._cumulative = np.cumsum(self.popularity)

    def sample(
        self,
        profile: NDArray[np.int64],
        met_before: NDArray[np.int64],
        counts: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws `counts[b]` items for each request, fewer where the profile has met nearly everything.

        Args:
            profile: `[B]` rows of profiles.
            met_before: `[B]` event rows: items of the profile's events before it are left out.
            counts: `[B]` how many to draw.
            rng: what makes the draw repeatable.

        Returns:
            places in the catalogue `[sum of lengths]`, request by request, and lengths `[B]`.
        """
        width = int(counts.max(initial=0))
        slot = np.arange(width)
        drawn_BW = np.full((len(profile), width), _FREE, dtype=np.int64)
        wanted_BW = slot < counts[:, None]
        for _ in range(MAX_ROUNDS):
            rows = np.flatnonzero((wanted_BW & (drawn_BW == _FREE)).any(axis=1))
            if not len(rows):
                break
            self._draw(rows, drawn_BW, wanted_BW, profile, met_before, rng)
        for row in np.flatnonzero((wanted_BW & (drawn_BW == _FREE)).any(axis=1)):
            self._fill(drawn_BW[row], wanted_BW[row], int(profile[row]), int(met_before[row]), rng)
        taken_BW = drawn_BW != _FREE
        return drawn_BW[taken_BW], taken_BW.sum(axis=1)

    def is_met(
        self, profile: NDArray[np.int64], item: NDArray[np.int64], met_before: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each profile met each item (a place in the catalogue) before the given event row."""
        if not len(self._met):
            return np.zeros(len(item), dtype=bool)
        keys = profile * self.num_items + item
        place = np.minimum(np.searchsorted(self._met, keys), len(self._met) - 1)
        return (self._met[place] == keys) & (self._met_first[place] < met_before)

    def _draw(
        self,
        rows: NDArray[np.int64],
        drawn_BW: NDArray[np.int64],
        wanted_BW: NDArray[np.bool_],
        profile: NDArray[np.int64],
        met_before: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        """One round: draws into free slots of `rows`, and frees those again that were met or drawn twice."""
        kept = drawn_BW[rows]
        row, slot = np.nonzero(wanted_BW[rows] & (kept == _FREE))
        item = self._propose(slot, rng)
        item[self.is_met(profile[rows[row]], item, met_before[rows[row]])] = _FREE
        tried = kept.copy()
        tried[row, slot] = item
        # Equal items come together, one that was there before first.
        order = np.argsort(2 * tried + (kept == _FREE), axis=1, kind="stable")
        ordered = np.take_along_axis(tried, order, axis=1)
        ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = _FREE
        np.put_along_axis(tried, order, ordered, axis=1)
        drawn_BW[rows] = tried

    def _propose(self, slot: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """An item for each slot: uniform for even slots, by popularity for odd ones."""
        uniform = rng.integers(self.num_items, size=len(slot))
        if self._cumulative[-1] == 0:
            return uniform
        popular = np.searchsorted(
            self._cumulative, rng.integers(self._cumulative[-1], size=len(slot)), "right"
        )
        return np.where(slot % 2 == 0, uniform, popular)

    def _fill(
        self,
        drawn_W: NDArray[np.int64],
        wanted_W: NDArray[np.bool_],
        profile: int,
        met_before: int,
        rng: np.random.Generator,
    ) -> None:
        """Fills one request's free slots from the list of all items that are left, as far as it goes."""
        everything = np.arange(self.num_items)
        met = self.is_met(np.full(self.num_items, profile), everything, np.full(self.num_items, met_before))
        left = everything[~met & ~np.isin(everything, drawn_W)]
        # Sorted by weight / exponential, items come in the order of weighted draws without replacement
        # (Efraimidis and Spirakis 2006); those that nobody watched come last.
        chance = (self.popularity[left] + 1e-9) / rng.exponential(size=len(left))
        by_popularity = left[np.argsort(-chance, kind="stable")].tolist()
        at_random = rng.permutation(left).tolist()
        used: set[int] = set()
        for slot in np.flatnonzero(wanted_W & (drawn_W == _FREE)):
            source = at_random if slot % 2 == 0 else by_popularity
            item = next((item for item in source if item not in used), _FREE)
            used.add(item)
            drawn_W[slot] = item
