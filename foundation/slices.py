"""Where a model is good: ranking figures by the tested item's frequency and age, and by history length.

Shapes: P tested profiles, I item rows, N events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from foundation.dataset import Dataset
from foundation.leave_one_out import LastEvents, item_counts, ranking_metrics
from foundation.raw_values import NO_VALUE
from foundation.split import training_mask
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN

FREQUENCIES = (0, 1, 11, 101, 1_001)
"""Least training events of an item in each slice."""
AGES_DAYS = (0, 7, 28, 365)
"""Least age in each slice; the first also holds what was tested before its launch."""
LENGTHS = (1, 11, 21, 51, 101, 201)
"""Least events of the history in each slice."""
UNKNOWN = "unknown"
_SECONDS_PER_DAY = 86_400

Figures = dict[str, float]


def slices(
    dataset: Dataset, events: EventIds, tested: LastEvents, ranks_P: Tensor
) -> dict[str, dict[str, Figures]]:
    """profiles, hr@10, ndcg@10 and mrr by slice; slices without a profile are left out.

    Returns:
        By name of the slicing, then of the slice ("11-100": from 11 to 100):
        item_frequency: training events of the tested item.
        item_age_days: whole days from its launch to the tested event; where no launch is known, from its first
            training event, and "unknown" where it has none.
        history_length: events before the tested one, all of them, whatever the window.
    """
    num_rows = dataset.num_items + FIRST_KNOWN
    item_P = events.item[tested.last_row]
    return {
        "item_frequency": _by_least(item_counts(dataset, events, num_rows)[item_P], FREQUENCIES, ranks_P),
        "item_age_days": _by_least(item_ages_days(dataset, events, tested), AGES_DAYS, ranks_P),
        "history_length": _by_least(tested.last_row - tested.first_row, LENGTHS, ranks_P),
    }


def item_ages_days(dataset: Dataset, events: EventIds, tested: LastEvents) -> NDArray[np.int64]:
    """Whole days from the launch of each tested item to its event, at least 0; -1 where nothing says. `[P]`."""
    born = np.full(dataset.num_items + FIRST_KNOWN, np.iinfo(np.int64).max)
    trained = training_mask(dataset)
    np.minimum.at(born, events.item[trained], events.timestamp[trained])
    launched_at = dataset.catalogue.launched_at
    if launched_at is not None:
        known = launched_at != NO_VALUE
        born[FIRST_KNOWN:][known] = launched_at[known]
    born_P, now_P = born[events.item[tested.last_row]], events.timestamp[tested.last_row]
    known_P = born_P < np.iinfo(np.int64).max
    age_s = np.maximum(0, now_P - np.where(known_P, born_P, now_P))
    return np.where(known_P, age_s // _SECONDS_PER_DAY, -1)


def _by_least(values_P: NDArray[np.int64], edges: tuple[int, ...], ranks_P: Tensor) -> dict[str, Figures]:
    """The figures between one edge and the next; a negative value is unknown."""
    tops = [*(str(edge - 1) for edge in edges[1:]), ""]
    names = [UNKNOWN] + [
        str(edge) if str(edge) == top else f"{edge}-{top}" if top else f"{edge}+"
        for edge, top in zip(edges, tops, strict=True)
    ]
    number_P = np.searchsorted(edges, values_P, side="right")
    return {
        names[number]: _figures(ranks_P[np.flatnonzero(number_P == number)]) for number in np.unique(number_P)
    }


def _figures(ranks_P: Tensor) -> Figures:
    metrics = ranking_metrics(ranks_P)
    return {"profiles": len(ranks_P), **{name: metrics[name] for name in ("hr@10", "ndcg@10", "mrr")}}
