"""Adjacent events of a history on one item, merged to one as in training (`foundation/merging.py`). NumPy only.

Shapes: n events of one history, r after merging.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serving.contract import Way
from serving.wire_input import NO_NUMBER, RequestError


def run_starts(item_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows at which a merged event begins, int64 `[r]`, of raw item ids `[n]`, oldest first."""
    return np.flatnonzero(np.append(True, item_id[1:] != item_id[:-1])[: len(item_id)])


def check_merged(item_id: NDArray[np.int64], lengths: NDArray) -> None:
    """Refuses histories whose adjacent events on one item were not merged by the caller.

    Args:
        item_id: raw ids of all requests' events, laid end to end.
        lengths: events of each request.

    Raises:
        RequestError: names the second of the first two.
    """
    of_request = np.repeat(np.arange(len(lengths)), lengths)
    again = (item_id[1:] == item_id[:-1]) & (of_request[1:] == of_request[:-1])
    if again.any():
        row = int(again.argmax()) + 1
        problem = "it is the item before it; merge adjacent events on one item, as this model was trained on"
        raise RequestError(f"history.item_id[{row}]", item_id[row], problem)


def merge_values(values: NDArray, starts: NDArray[np.int64], way: Way) -> NDArray:
    """One value for each merged event.

    Args:
        values: `[n]` or `[n, M]`; numbers `[n]` where they are summed.
        starts: `[r]`, from `run_starts`.
        way: the first action's value, the last one's, or the sum of those that are not missing.

    Returns:
        `[r]` or `[r, M]`, of the same type.
    """
    if way == "first" or not len(starts):
        return values[starts]
    if way == "last":
        return values[np.append(starts[1:], len(values)) - 1]
    there = values != NO_NUMBER
    sums = np.add.reduceat(np.where(there, values, 0).astype(np.float64), starts)
    return np.where(np.logical_or.reduceat(there, starts), sums, NO_NUMBER).astype(values.dtype)
