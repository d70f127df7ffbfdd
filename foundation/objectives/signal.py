"""What an event says about how much its profile cared: a number, read from one of its *what* facets.

The facet's looked-up rows are read through a table, so training needs no raw values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.objectives.config import SignalConfig
from foundation.objectives.labels import LabelColumns, label_columns
from foundation.raw_values import hash_string
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN, NumericBuckets, Vocabulary


class Signal:
    """Weights of events as targets.

    Args:
        config: names the facet.
        tokenizer: of the events.

    Raises:
        DataError: no such facet, or numbers that don't fit its values.
    """

    def __init__(self, config: SignalConfig, tokenizer: Tokenizer) -> None:
        self._label = _resolve(config.facet, tokenizer)
        lookup = tokenizer.vocabularies.facets[config.facet]
        numbers = _numbers(config, lookup).astype(np.float64) * config.scale
        table = np.append(numbers, config.missing * config.scale)
        if config.mode == "mask":
            table = (table >= config.threshold).astype(np.float64)
        elif config.mode == "reward":
            table = np.maximum(table, 0.0)
        elif (table < 0).any():
            raise DataError(
                f"objective.signal gives facet {config.facet!r} a weight of {table.min()}; weights must be at least "
                "0 (mode 'reward' takes negative numbers, as 0)"
            )
        self._table = table.astype(np.float32)

    def weights(self, events: EventIds, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights of the events `rows`, at least 0; 0 makes no target of the event.

        Args:
            events: looked-up events.
            rows: of any shape.
        """
        label = self._label
        buckets = events.outcome_side[rows, label.columns[0]] - label.first_row
        known = (buckets >= 0) & (buckets < label.num_classes)
        return self._table[np.where(known, buckets, label.num_classes)]


def _resolve(name: str, tokenizer: Tokenizer) -> LabelColumns:
    single = {
        name: label
        for name, label in label_columns(tokenizer).items()
        if label.source == "outcome" and len(label.columns) == 1
    }
    if name not in single:
        raise DataError(
            f"objective.signal.facet is {name!r}; the single-valued what facets of schema "
            f"{tokenizer.schema.name!r} are: {', '.join(single) or 'none'}"
        )
    return single[name]


def _numbers(config: SignalConfig, lookup: Vocabulary | NumericBuckets) -> NDArray:
    """The number of each known value, in the order of the vocabulary's rows."""
    num_known = lookup.num_rows - FIRST_KNOWN
    if isinstance(lookup, Vocabulary) and config.categories:
        return _of_categories(config, lookup)
    if config.categories:
        raise DataError(
            f"objective.signal.categories is {config.categories}; facet {config.facet!r} is a number: leave it empty"
        )
    if config.values and len(config.values) != num_known:
        raise DataError(
            f"objective.signal.values has {len(config.values)} numbers; facet {config.facet!r} has {num_known} "
            "known values"
        )
    if config.values:
        return np.array(config.values)
    if isinstance(lookup, Vocabulary):
        raise DataError(
            f"objective.signal.values is empty; facet {config.facet!r} is categorical and needs categories and values"
        )
    return np.append(0.0, lookup.boundaries)


def _of_categories(config: SignalConfig, lookup: Vocabulary) -> NDArray:
    numbers = np.full(lookup.num_rows - FIRST_KNOWN, config.missing)
    for category, value in zip(config.categories, config.values, strict=True):
        row = int(lookup.lookup(np.array([hash_string(category)]))[0])
        if row < FIRST_KNOWN and category.lstrip("-").isdigit():
            row = int(lookup.lookup(np.array([int(category)]))[0])
        if row < FIRST_KNOWN:
            raise DataError(
                f"objective.signal.categories names {category!r}; no training event has that value of "
                f"{config.facet!r}"
            )
        numbers[row - FIRST_KNOWN] = value
    return numbers
