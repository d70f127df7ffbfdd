"""Tokens back to raw values: what of an event a token keeps, and what it doesn't.

Categories, hours and items come back as they were; numbers, durations, gaps, ages and dates as the range of their
bucket. Shapes: T tokens, M = max_values of a multi-valued facet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.joint_table import JointTable
from foundation.schema import Schema
from foundation.time_facets import (
    AGE_LOG_WIDTH,
    DATE,
    GAP,
    GAP_LOG_WIDTH,
    HOUR_OF_WEEK,
    HOURS_PER_WEEK,
    ITEM_AGE,
    NUM_AGE_BUCKETS,
    NUM_GAP_BUCKETS,
    SECONDS_PER_DAY,
)
from foundation.vocabulary import FIRST_KNOWN, PERIOD_S, Lookup, NumericBuckets, Vocabularies, Vocabulary

ITEM = "item"


class Values(NamedTuple):
    """Values that came back exactly."""

    row: NDArray[np.int64]
    """`[T]` or `[T, M]`: -1 where there is no value, `OUT_OF_VOCABULARY`, `START`, or the row of a known value."""
    value: NDArray[np.int64]
    """`[T]` or `[T, M]`: the raw value of a known row, else 0."""


class Ranges(NamedTuple):
    """Numbers of which the bucket came back: `low <= number < high`."""

    row: NDArray[np.int64]
    """`[T]`: as in `Values`."""
    low: NDArray[np.float64]
    """`[T]`: -inf for the first bucket; NaN where the row is no bucket."""
    high: NDArray[np.float64]
    """`[T]`: inf for the last bucket; NaN where the row is no bucket."""


Decoded = Values | Ranges


class Detokenizer:
    """Turns rows back into what they stand for.

    Args:
        schema: the declared facets.
        vocabularies: of the same schema.
        table: the joint facet table of a tokenizer with these.
    """

    def __init__(self, schema: Schema, vocabularies: Vocabularies, table: JointTable) -> None:
        self._table = table
        self._items = vocabularies.items
        self._multi = {facet.name for facet in schema.facets if facet.kind == "multi"}
        gap_edges = np.exp(GAP_LOG_WIDTH * np.arange(1, NUM_GAP_BUCKETS))
        age_edges = SECONDS_PER_DAY * np.expm1(AGE_LOG_WIDTH * np.arange(1, NUM_AGE_BUCKETS))
        date_edges = vocabularies.first_timestamp + PERIOD_S * np.arange(1.0, vocabularies.num_periods)
        self._known: dict[str, NDArray] = {
            HOUR_OF_WEEK: np.arange(HOURS_PER_WEEK),
            **{name: _known(lookup) for name, lookup in vocabularies.facets.items()},
        }
        self._edges: dict[str, NDArray] = {
            GAP: gap_edges,
            ITEM_AGE: age_edges,
            DATE: date_edges,
            **{
                name: lookup.boundaries.astype(np.float64)
                for name, lookup in vocabularies.facets.items()
                if isinstance(lookup, NumericBuckets)
            },
        }

    def detokenize(
        self, columns: Sequence[str], facet_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
    ) -> dict[str, Decoded]:
        """What tokens say, by the names of facets and time channels, and `item`.

        The context columns are those of the token's own event, the gap reaches back from it, and the rest is of the
        event before.

        Args:
            columns: `[F]`, the tokenizer's `facet_columns`.
            facet_ids: `[T, F]`.
            item_ids: `[T]`.

        Raises:
            ValueError: a row belongs to another column.
        """
        decoded: dict[str, Decoded] = {ITEM: _values(item_ids, self._items.keys)}
        places: dict[str, list[int]] = {}
        for place, column in enumerate(columns):
            places.setdefault(column.split("[")[0], []).append(place)
        for name, of_facet in places.items():
            chosen = facet_ids[:, of_facet] if name in self._multi else facet_ids[:, of_facet[0]]
            rows = self._table.ids(name, chosen)
            edges = self._edges.get(name)
            decoded[name] = _values(rows, self._known[name]) if edges is None else _ranges(rows, edges)
        return decoded


def _known(lookup: Lookup) -> NDArray:
    return lookup.keys if isinstance(lookup, Vocabulary) else lookup.boundaries


def _values(rows: NDArray[np.int64], known: NDArray[np.int64]) -> Values:
    value = np.zeros(rows.shape, dtype=np.int64)
    is_known = rows >= FIRST_KNOWN
    value[is_known] = known[rows[is_known] - FIRST_KNOWN]
    return Values(rows, value)


def _ranges(rows: NDArray[np.int64], edges: NDArray[np.float64]) -> Ranges:
    ends = np.concatenate(([-np.inf], edges, [np.inf]))
    bucket = np.maximum(rows - FIRST_KNOWN, 0)
    is_bucket = rows >= FIRST_KNOWN
    return Ranges(
        rows, np.where(is_bucket, ends[bucket], np.nan), np.where(is_bucket, ends[bucket + 1], np.nan)
    )
