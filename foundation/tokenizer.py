"""Events to tokens: the one implementation that pre-training, co-training and serving share.

A token joins what is known as event t begins (when, where, and the gap to the event before) with the outcome of event
t - 1 (its item, and what was done with it). Its target is the item of event t. So nothing of an event is in the token
that predicts it, and appending an event changes no token before it.

Shapes: N events, T tokens, B requests, Fr request-side and Fo outcome-side facet columns, F = Fr + 1 + Fo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.joint_table import PADDING_ROW, JointTable
from foundation.schema import Facet, Schema
from foundation.time_facets import (
    DATE,
    GAP,
    HOUR_OF_WEEK,
    HOURS_PER_WEEK,
    NUM_GAP_BUCKETS,
    gap_bucket,
    hour_of_week,
    period,
)
from foundation.tokens import EventIds, Tokens, concatenate
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, START, Vocabularies


class Tokenizer:
    """Looks events up in the vocabularies and assembles them to tokens. Holds no state between calls.

    Three facets of time are built in: hour of week (UTC) and date (periods of 28 days since the first training event,
    clipped to the known span) are absolute; the gap, a log bucket of the seconds since the event before, is relative.

    Args:
        schema: the declared facets.
        vocabularies: of the same schema.

    Attributes:
        facet_columns: `[F]`, names of the columns of `facet_ids`; a multi-valued facet takes `max_values` columns.
        num_facet_rows: rows of the joint facet table, its padding row 0 included.
    """

    def __init__(self, schema: Schema, vocabularies: Vocabularies) -> None:
        self.schema = schema
        self.vocabularies = vocabularies
        self._request_facets = schema.facets_of("when", "where")
        self._outcome_facets = schema.facets_of("what")
        num_rows_of = {
            HOUR_OF_WEEK: FIRST_KNOWN + HOURS_PER_WEEK,
            DATE: FIRST_KNOWN + vocabularies.num_periods,
            GAP: FIRST_KNOWN + NUM_GAP_BUCKETS,
        }
        num_rows_of |= {facet.name: vocabularies.facets[facet.name].num_rows for facet in schema.facets}
        self._table = JointTable(num_rows_of)
        self.num_facet_rows = self._table.num_rows
        self.facet_columns = (
            HOUR_OF_WEEK,
            DATE,
            *_column_names(self._request_facets),
            GAP,
            *_column_names(self._outcome_facets),
        )
        self._num_outcome_columns = len(_column_names(self._outcome_facets))
        self._gap_start = self._table.row(GAP, START)
        self._outcome_start = self._outcome_start_rows()

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
        return EventIds(
            # No item at all (NO_VALUE, -1 from a lookup) reads as an unknown one: there was an event.
            item=np.maximum(self.vocabularies.items.lookup(item_id), OUT_OF_VOCABULARY),
            timestamp=timestamp,
            request_side=self._request_side(timestamp, facets),
            outcome_side=self._facet_rows(self._outcome_facets, facets, len(timestamp)),
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
            outcome_side=np.full((len(timestamp), self._num_outcome_columns), PADDING_ROW, dtype=np.int64),
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
        gap = self._table.row(GAP, FIRST_KNOWN) + gap_bucket(ids.timestamp[rows] - ids.timestamp[before])
        num_request = ids.request_side.shape[1]
        facet_ids = np.empty((len(rows), len(self.facet_columns)), dtype=np.int64)
        facet_ids[:, :num_request] = ids.request_side[rows]
        facet_ids[:, num_request] = np.where(is_first, self._gap_start, gap)
        facet_ids[:, num_request + 1 :] = ids.outcome_side[before]
        facet_ids[is_first, num_request + 1 :] = self._outcome_start
        return facet_ids, np.where(is_first, START, ids.item[before])

    def _request_side(self, timestamp: NDArray[np.int64], facets: Mapping[str, NDArray]) -> NDArray[np.int64]:
        vocabularies = self.vocabularies
        periods = period(timestamp, vocabularies.first_timestamp, vocabularies.num_periods)
        absolute_time = (
            self._table.rows(HOUR_OF_WEEK, FIRST_KNOWN + hour_of_week(timestamp)),
            self._table.rows(DATE, FIRST_KNOWN + periods),
        )
        declared = self._facet_rows(self._request_facets, facets, len(timestamp))
        return np.column_stack((*absolute_time, declared))

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
