"""Adjacent events of a profile on one item, merged to one. NumPy only.

A title that is paused and resumed is logged as several actions. Merged, they are one event:

- timestamp, gap, *when* and *where* facets are those of the first action,
- *what* facets of the kind duration are summed, over the actions that have one,
- every other *what* facet is that of the last action, "no value" included,
- `num_actions` counts the actions.

Other items between two actions keep them apart, however little time lies between. What a merged event is made of
beyond that is lost: the times of its later actions, their places, and all but the last of their other outcomes.

Shapes: P profiles, N events before merging, R after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foundation.raw_values import NO_NUMBER
from foundation.schema import NUM_ACTIONS, Facet

Way = Literal["first", "last", "sum"]
"""What a merged event has of a facet: the first action's value, the last one's, or the sum."""


def way_of(facet: Facet) -> Way:
    """How merging treats a facet."""
    if facet.role != "what":
        return "first"
    return "sum" if facet.kind == "duration" or facet.name == NUM_ACTIONS else "last"


def run_starts(item_id: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows at which a merged event begins, int64 `[R]`.

    Args:
        item_id: `[N]` raw ids, so that two unknown items stay two.
        offsets: `[P + 1]`, where each profile's events start; some may have none.
    """
    begins = np.ones(len(item_id), dtype=bool)
    begins[1:] = item_id[1:] != item_id[:-1]
    first = offsets[:-1]
    begins[first[first < len(item_id)]] = True
    return np.flatnonzero(begins)


def merged_offsets(starts: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """`offsets` `[P + 1]` as counted in merged events."""
    return np.searchsorted(starts, offsets)


def merge_values(values: NDArray, starts: NDArray[np.int64], way: Way) -> NDArray:
    """One value for each merged event.

    Args:
        values: `[N]` or `[N, M]`; numbers `[N]` where they are summed.
        starts: `[R]`, from `run_starts`.
        way: which value.

    Returns:
        `[R]` or `[R, M]`, of the same type. A sum counts missing numbers as 0, and is missing where all of them are.
    """
    if way == "first":
        return values[starts]
    if way == "last":
        return values[np.append(starts[1:], len(values))[: len(starts)] - 1]
    if not len(starts):
        return values[:0]
    there = values != NO_NUMBER
    sums = np.add.reduceat(np.where(there, values, 0).astype(np.float64), starts)
    return np.where(np.logical_or.reduceat(there, starts), sums, NO_NUMBER).astype(values.dtype)


def merge_facets(
    facets: Mapping[str, NDArray], ways: Mapping[str, Way], starts: NDArray[np.int64], num_events: int
) -> dict[str, NDArray]:
    """The facets of merged events, `num_actions` among them.

    Args:
        facets: raw values by name, `[N]` or `[N, M]`; without `num_actions` every event is one action.
        ways: by name, of every facet that is asked for.
        starts: `[R]`, from `run_starts`.
        num_events: N.
    """
    given = {NUM_ACTIONS: np.ones(num_events, dtype=np.float32), **facets}
    return {name: merge_values(given[name], starts, way) for name, way in ways.items()}
