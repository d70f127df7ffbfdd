"""Events to tokens: the one implementation that pre-training, co-training and serving share.

A token joins what is known as event t begins (when, where, and the gap to the event before) with the outcome of event
t - 1 (its item, what was done with it, and how old the item was then). Its target is the item of event t. So nothing of
an event is in the token that predicts it, and appending an event changes no token before it.

Shapes: N events, T tokens, B requests, Fr request-side and Fo outcome-side facet columns, F = Fr + 1 + Fo (the gap).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.detokenizer import Decoded, Detokenizer
from foundation.joint_table import PADDING_ROW, JointTable
from foundation.raw_values import NO_VALUE
from foundation.schema import Facet, Schema
from foundation.time_facets import (
    DATE,
    GAP,
    HOUR_OF_WEEK,
    HOURS_PER_WEEK,
    ITEM_AGE,
    NUM_AGE_BUCKETS,
    NUM_GAP_BUCKETS,
    age_bucket,
    gap_bucket,
    hour_of_week,
    period,
)
from foundation.tokens import EventIds, Tokens, concatenate
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, START, Vocabularies

NO_CONTEXT = "no_context"
"""The one context column, without a value in any token, of a schema whose requests say nothing of themselves."""


class Tokenizer:
    """Looks events up in the vocabularies and assembles them to tokens. Holds no state between calls.

    Up to three facets of time are built in, those that the schema names: hour of week (UTC) and date (periods of 28
    days since the first training event, clipped to the known span) are absolute; the gap, a log bucket of the seconds
    since the event before, is relative. Where launches are known, `item_age` is that of the token's own item, the one
    of the event before, as of that event: it never changes later.

    Args:
        schema: the declared facets.
        vocabularies: of the same schema.

    Attributes:
        facet_columns: `[F]`, names of the columns of `facet_ids`; a multi-valued facet takes `max_values` columns.
        context_columns: those of a request alone, without a history: absolute time, *when* and *where* facets.
        request_columns: those known as the event begins: the context, and the gap.
        outcome_columns: those of the event before: *what* facets, and its item's age.
        num_facet_rows: rows of the joint facet table, its padding row 0 included.
    """

    def __init__(self, schema: Schema, vocabularies: Vocabularies) -> None:
        self.schema = schema
        self.vocabularies = vocabularies
        self._request_facets = schema.facets_of("when", "where")
        self._outcome_facets = schema.facets_of("what")
        self._absolute_time = tuple(channel for channel in schema.time_channels if channel != GAP)
        gap = (GAP,) if GAP in schema.time_channels else ()
        age = (ITEM_AGE,) if vocabularies.launched_at is not None else ()
        self._table = JointTable(self._num_rows_of(schema, vocabularies))
        self.num_facet_rows = self._table.num_rows
        context = (*self._absolute_time, *_column_names(self._request_facets))
        context = context or (NO_CONTEXT,)
        outcome = (*_column_names(self._outcome_facets), *age)
        self.facet_columns = (*context, *gap, *outcome)
        self.context_columns = slice(0, len(context))
        self.request_columns = slice(0, len(context) + len(gap))
        self.outcome_columns = slice(self.request_columns.stop, len(self.facet_columns))
        self._outcome_start = self._outcome_start_rows()

    @staticmethod
    def _num_rows_of(schema: Schema, vocabularies: Vocabularies) -> dict[str, int]:
        """Rows of every vocabulary in the joint table, in the order in which they lie."""
        built_in = {
            HOUR_OF_WEEK: HOURS_PER_WEEK,
            DATE: vocabularies.num_periods,
            GAP: NUM_GAP_BUCKETS,
        }
        num_rows_of = {channel: FIRST_KNOWN + built_in[channel] for channel in schema.time_channels}
        num_rows_of |= {facet.name: vocabularies.facets[facet.name].num_rows for facet in schema.facets}
        if vocabularies.launched_at is not None:
            num_rows_of[ITEM_AGE] = FIRST_KNOWN + NUM_AGE_BUCKETS
        return num_rows_of

    def event_ids(
        self, item_id: NDArray[np.int64], timestamp: NDArray[np.int64], facets: Mapping[str, NDArray]
    ) -> EventIds:
        """Look up any number of events, once for a whole dataset or for one request's history.

        Args:
            item_id: `[N]` raw item ids; unknown ones become `OUT_OF_VOCABULARY`.
            timestamp: `[N]` unix seconds.
            facets: raw values of every declared facet, `[N]`, or `[N, max_values]` where multi-valued.

        Raises:
            ValueError: if a facet is missing or has not N rows.
        """
        item_id, timestamp = np.asarray(item_id, np.int64), np.asarray(timestamp, np.int64)
        # No item at all (NO_VALUE, -1 from a lookup) reads as an unknown one: there was an event.
        item = np.maximum(self.vocabularies.items.lookup(item_id), OUT_OF_VOCABULARY)
        return EventIds(
            item=item,
            timestamp=timestamp,
            request_side=self._request_side(timestamp, facets),
            outcome_side=self._outcome_side(item, timestamp, facets),
        )

    def request_ids(self, timestamp: NDArray[np.int64], facets: Mapping[str, NDArray]) -> EventIds:
        """Requests as events that have begun and have no outcome: item unknown, outcome facets without a value.

        Args:
            timestamp: `[B]` unix seconds.
            facets: raw values of every *when* and *where* facet, as in `event_ids`.
        """
        timestamp = np.asarray(timestamp, np.int64)
        return EventIds(
            item=np.full(len(timestamp), OUT_OF_VOCABULARY, dtype=np.int64),
            timestamp=timestamp,
            request_side=self._request_side(timestamp, facets),
            outcome_side=np.full((len(timestamp), len(self._outcome_start)), PADDING_ROW, dtype=np.int64),
        )

    def assemble(
        self, ids: EventIds, rows: NDArray[np.int64], previous: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of chosen events.

        Args:
            ids: looked-up events.
            rows: `[T]`, the event whose token this is.
            previous: `[T]`, the event before it in the same history, or -1 for a history's first kept event: then
                item, outcome and gap are the start marker, whatever was dropped before it.

        Returns:
            `facet_ids` `[T, F]` rows of the joint facet table, and `item_ids` `[T]` item rows.
        """
        is_first = previous < 0
        before = np.where(is_first, rows, previous)
        facet_ids = np.empty((len(rows), len(self.facet_columns)), dtype=np.int64)
        facet_ids[:, self.context_columns] = ids.request_side[rows]
        if GAP in self.schema.time_channels:
            buckets = gap_bucket(ids.timestamp[rows] - ids.timestamp[before])
            gap = np.where(is_first, START, FIRST_KNOWN + buckets)
            facet_ids[:, self.context_columns.stop] = self._table.rows(GAP, gap)
        facet_ids[:, self.outcome_columns] = ids.outcome_side[before]
        facet_ids[is_first, self.outcome_columns] = self._outcome_start
        return facet_ids, np.where(is_first, START, ids.item[before])

    @property
    def age_column(self) -> int | None:
        """The column of `facet_ids` that holds the age of the token's item; None where launches are unknown."""
        return self.facet_columns.index(ITEM_AGE) if ITEM_AGE in self.facet_columns else None

    def age_rows(self, timestamp: int) -> NDArray[np.int64]:
        """Joint facet rows of every item's age at `timestamp` (unix seconds), `[I]`; 0 where it is unknown."""
        if self.vocabularies.launched_at is None:
            return np.full(self.vocabularies.items.num_rows, PADDING_ROW, dtype=np.int64)
        return self._age_rows(self.vocabularies.launched_at, timestamp)

    def detokenize(self, facet_ids: NDArray[np.int64], item_ids: NDArray[np.int64]) -> dict[str, Decoded]:
        """What tokens say, in raw values, by the names of facets and time channels, and `item`.

        Args:
            facet_ids: `[T, F]`.
            item_ids: `[T]`.
        """
        detokenizer = Detokenizer(self.schema, self.vocabularies, self._table)
        columns = [column for column in self.facet_columns if column != NO_CONTEXT]
        return detokenizer.detokenize(columns, facet_ids, item_ids)

    def _request_side(self, timestamp: NDArray[np.int64], facets: Mapping[str, NDArray]) -> NDArray[np.int64]:
        vocabularies, columns = self.vocabularies, []
        if NO_CONTEXT in self.facet_columns:
            return np.full((len(timestamp), 1), PADDING_ROW, dtype=np.int64)
        if HOUR_OF_WEEK in self._absolute_time:
            columns.append(self._table.rows(HOUR_OF_WEEK, FIRST_KNOWN + hour_of_week(timestamp)))
        if DATE in self._absolute_time:
            periods = period(timestamp, vocabularies.first_timestamp, vocabularies.num_periods)
            columns.append(self._table.rows(DATE, FIRST_KNOWN + periods))
        return np.column_stack((*columns, self._facet_rows(self._request_facets, facets, len(timestamp))))

    def _outcome_side(
        self, item: NDArray[np.int64], timestamp: NDArray[np.int64], facets: Mapping[str, NDArray]
    ) -> NDArray[np.int64]:
        rows = self._facet_rows(self._outcome_facets, facets, len(timestamp))
        if self.vocabularies.launched_at is None:
            return rows
        return np.column_stack((rows, self._age_rows(self.vocabularies.launched_at[item], timestamp)))

    def _age_rows(
        self, launched_at: NDArray[np.int64], timestamp: NDArray[np.int64] | int
    ) -> NDArray[np.int64]:
        known = launched_at != NO_VALUE
        age = np.where(known, FIRST_KNOWN + age_bucket(timestamp - np.where(known, launched_at, 0)), -1)
        return self._table.rows(ITEM_AGE, age)

    def _facet_rows(
        self, declared: Sequence[Facet], facets: Mapping[str, NDArray], num_events: int
    ) -> NDArray[np.int64]:
        columns = [np.empty((num_events, 0), dtype=np.int64)]
        for facet in declared:
            shape = (num_events, facet.max_values) if facet.kind == "multi" else (num_events,)
            if facet.name not in facets:
                raise ValueError(f"facet {facet.name!r} is missing; given: {sorted(facets)}")
            if facets[facet.name].shape != shape:
                raise ValueError(
                    f"facet {facet.name!r} must have shape {shape}, got {facets[facet.name].shape}"
                )
            ids = self.vocabularies.facets[facet.name].lookup(facets[facet.name])
            columns.append(self._table.rows(facet.name, ids))
        return np.column_stack(columns)

    def _outcome_start_rows(self) -> NDArray[np.int64]:
        # A start marker is one value: the further columns of a multi-valued facet stay empty.
        rows: list[int] = []
        for facet in self._outcome_facets:
            num_further = len(_column_names([facet])) - 1
            rows += [self._table.row(facet.name, START), *[PADDING_ROW] * num_further]
        if self.vocabularies.launched_at is not None:
            rows.append(self._table.row(ITEM_AGE, START))
        return np.array(rows, dtype=np.int64)


def history_tokens(
    tokenizer: Tokenizer, history: EventIds, history_offsets: NDArray[np.int64], request: EventIds
) -> Tokens:
    """Tokens of B requests: one for each event of the history, then one for the request itself.

    Args:
        tokenizer: assembles the tokens.
        history: events of all requests, each request's already cut to its window.
        history_offsets: `[B + 1]`; the history of request b is `history_offsets[b] .. history_offsets[b + 1] - 1`,
            which may be empty.
        request: one row for each request, from `Tokenizer.request_ids`.

    Returns:
        Tokens with lengths `[B]` = events + 1, so never 0.

    Raises:
        ValueError: if the offsets do not run from 0 to the number of history events in B steps.
    """
    offsets = np.asarray(history_offsets, dtype=np.int64)
    num_events, num_requests = len(history.item), len(request.item)
    if offsets.shape != (num_requests + 1,):
        raise ValueError(
            f"history_offsets must have shape [{num_requests + 1}] for {num_requests} requests, got {offsets.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != num_events or (np.diff(offsets) < 0).any():
        raise ValueError(f"history_offsets must rise from 0 to {num_events} (history events), got {offsets}")
    lengths = np.diff(offsets) + 1
    last = np.cumsum(lengths) - 1
    is_event = np.ones(num_events + num_requests, dtype=bool)
    is_event[last] = False
    rows = np.empty(num_events + num_requests, dtype=np.int64)
    rows[is_event] = np.arange(num_events)
    rows[last] = num_events + np.arange(num_requests)
    previous = np.concatenate(([-1], rows[:-1]))
    previous[last - lengths + 1] = -1
    facet_ids, item_ids = tokenizer.assemble(concatenate(history, request), rows, previous[: len(rows)])
    return Tokens(facet_ids, item_ids, lengths)


def _column_names(facets: Sequence[Facet]) -> list[str]:
    names: list[str] = []
    for facet in facets:
        several = facet.kind == "multi"
        names += [f"{facet.name}[{i}]" for i in range(facet.max_values)] if several else [facet.name]
    return names
