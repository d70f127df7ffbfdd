"""Scores of all items at many events of the same histories, with one pass over what their windows share.

Letters: E events to score, Q events of a chunk, T packed tokens, I item rows, N events of the dataset, P profiles.

A request at a profile's event n sees the events from `window_start(n)` on, and that start moves once in `block`
events. So all events between two moves have the same first token, and each is predicted by the token of its own in
one causal pass over the longest of their windows: to rounding the very scores of one pass per event, whose windows
are those of training and serving. Nothing is approximated; a profile of 200 events takes one pass, and each `block`
events beyond take one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from foundation.errors import DataError
from foundation.layout import layout
from foundation.model import FoundationModel
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import span_rows, window_start

_TOKENS_PER_CHUNK, _SCORES_PER_CHUNK = 8_192, 1 << 22


class Points(NamedTuple):
    """Events to score, each from everything before it in its profile."""

    first_row: NDArray[np.int64]  # [E], row of the profile's first event
    row: NDArray[np.int64]  # [E], row of the event; ascending


class _Passes(NamedTuple):
    """Ranges of event rows that one pass each reads, and the events that it scores."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    points: list[NDArray[np.int64]]  # places of the scored events, by pass


@torch.no_grad()
def event_scores(
    model: FoundationModel, tokenizer: Tokenizer, events: EventIds, points: Points, title: str = ""
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Scores of every item for the requests at `points`.

    Args:
        model: in evaluation mode.
        tokenizer: that the events were looked up with.
        events: `Tokenizer.event_ids` of all events of the dataset.
        points: in rows of `events`.
        title: of the bar that is shown on stderr, where that is a terminal.

    Yields:
        Places `[Q]` among the points, and their logits `[Q, I]`; every point once, in no particular order.

    Raises:
        DataError: a score isn't a number.
    """
    items = model.item_vectors()
    passes = _passes(points, model.config.window.window, model.config.window.block)
    with tqdm(total=len(points.row), unit="event", desc=title, dynamic_ncols=True, disable=None) as bar:
        for chunk in _chunks(passes.stops - passes.starts):
            span = span_rows(passes.starts[chunk], passes.stops[chunk])
            facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
            where = layout(torch.from_numpy(span.lengths))
            times_T = torch.from_numpy(events.timestamp[span.rows])
            hidden_TD = model(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), where, items, times_T)
            first_token = np.cumsum(span.lengths) - span.lengths
            places = np.concatenate([passes.points[each] for each in chunk])
            offset = np.repeat(
                first_token - passes.starts[chunk], [len(passes.points[each]) for each in chunk]
            )
            tokens = points.row[places] + offset
            step = max(1, _SCORES_PER_CHUNK // len(items.vectors))
            for first in range(0, len(places), step):
                some = slice(first, first + step)
                logits_QI = model.logits(hidden_TD[torch.from_numpy(tokens[some])], items.vectors)
                if not logits_QI[:, FIRST_KNOWN:].isfinite().all():
                    raise DataError("the model's scores are not all numbers: its training went astray")
                yield places[some], logits_QI
            bar.update(len(places))


def choose_points(
    offsets: NDArray[np.int64], wanted: NDArray[np.bool_], most: int, rng: np.random.Generator
) -> Points:
    """Of each profile at most `most` of its `wanted` events, drawn at random; never its first, which has no history.

    Args:
        offsets: `[P+1]`, where each profile's events start.
        wanted: bool `[N]`.
        most: events of one profile.
        rng: of the draw.
    """
    first_row = np.repeat(offsets[:-1], np.diff(offsets))
    rows = np.flatnonzero(wanted & (np.arange(len(wanted)) > first_row))
    shuffled = rows[np.lexsort((rng.random(len(rows)), first_row[rows]))]
    profile_start = np.searchsorted(first_row[shuffled], first_row[shuffled])
    chosen = np.sort(shuffled[np.arange(len(shuffled)) - profile_start < most])
    return Points(first_row[chosen], chosen)


def seen_before(items: NDArray[np.int64], points: Points) -> tuple[Tensor, Tensor]:
    """Pairs (place among `points`, item row) of all events before each point; int64, two of one length.

    Args:
        items: `[N]`, item row of every event of the dataset.
        points: in rows of `items`.
    """
    history = span_rows(points.first_row, points.row)
    place = np.repeat(np.arange(len(points.row)), history.lengths)
    return torch.from_numpy(place), torch.from_numpy(items[history.rows])


def _passes(points: Points, window: int, block: int) -> _Passes:
    starts = points.first_row + window_start(points.row - points.first_row, window, block)
    # Rows ascend, and so do starts within a profile and from one to the next.
    firsts = np.flatnonzero(np.diff(starts, prepend=-1))
    places = np.split(np.arange(len(starts)), firsts[1:]) if len(starts) else []
    stops = np.array([points.row[each[-1]] + 1 for each in places], dtype=np.int64)
    return _Passes(starts[firsts], stops, places)


def _chunks(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Passes of similar lengths together, so that little is padded; the longest come first."""
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        stop = first + max(1, _TOKENS_PER_CHUNK // int(lengths[order[first]]))
        yield order[first:stop]
        first = stop
