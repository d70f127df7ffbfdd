"""How a profile's next event ranks by a representation that was computed some events ago.

A history has n events, and the last of them is the target. The representation k events stale is the hidden state of
the request token of event n - 1 - k: the context of then, behind the history before that event, in the window that a
request would have had then. It is what a store would hold that was last written k events ago; k = 0 is fresh.

Letters: P tested profiles, B profiles of a chunk, T packed tokens, I item rows, k events of staleness.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.errors import DataError
from foundation.layout import layout
from foundation.leave_one_out import LastEvents, ranks
from foundation.model import FoundationModel
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import Span, WindowConfig, span_rows, window_start

Masked = Literal["then", "now"]
"""Which items don't compete: those of the history that the representation knows, or also those since."""

# Of a chunk: dense tokens and scores, as in `foundation.leave_one_out`.
_TOKENS_PER_CHUNK, _SCORES_PER_CHUNK = 8_192, 1 << 20


class StaleRequests(NamedTuple):
    """Of each profile: where its history begins, the event whose request is represented, and the event to rank."""

    first_row: NDArray[np.int64]  # [P]
    request_row: NDArray[np.int64]  # [P]
    target_row: NDArray[np.int64]  # [P], k rows later


class RequestTokens(NamedTuple):
    """What the decoder reads: a window's tokens, of which the last is the request's own."""

    facet_ids: NDArray[np.int64]  # [T, F]
    item_ids: NDArray[np.int64]  # [T]
    span: Span


def stale_requests(tested: LastEvents, k: int) -> StaleRequests:
    """The requests k events before the tested ones.

    Profiles with fewer than k + 2 events up to the tested one are left out: their request of then had no history.
    """
    request_row = tested.last_row - k
    kept = request_row > tested.first_row
    return StaleRequests(tested.first_row[kept], request_row[kept], tested.last_row[kept])


def request_tokens(
    window: WindowConfig, tokenizer: Tokenizer, events: EventIds, requests: StaleRequests
) -> RequestTokens:
    """The tokens of the requests, none of them of an event after `request_row`, end to end."""
    start = window_start(requests.request_row - requests.first_row, window.window, window.block)
    span = span_rows(requests.first_row + start, requests.request_row + 1)
    facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
    return RequestTokens(facet_ids, item_ids, span)


def masked_items(events: EventIds, requests: StaleRequests, masked: Masked) -> tuple[Tensor, Tensor]:
    """(profile, item row) pairs that don't compete; the target competes though it be among them.

    Args:
        events: of the dataset.
        requests: of P profiles.
        masked: "then": of the events before `request_row`; "now": of all before `target_row`.
    """
    history = span_rows(requests.first_row, requests.request_row if masked == "then" else requests.target_row)
    profile = np.repeat(np.arange(len(history.lengths)), history.lengths)
    return torch.from_numpy(profile), torch.from_numpy(events.item[history.rows])


@torch.no_grad()
def stale_ranks(
    model: FoundationModel,
    tokenizer: Tokenizer,
    events: EventIds,
    requests: StaleRequests,
    masked: Masked = "then",
) -> Tensor:
    """Place of each target among all items, int64 [P], 0 is first.

    Args:
        model: in evaluation mode.
        tokenizer: that the events were looked up with.
        events: `Tokenizer.event_ids` of all events of the dataset.
        requests: to rank by.
        masked: see `masked_items`.

    Raises:
        DataError: a score isn't a number.
    """
    items = model.item_vectors()
    found_P = torch.zeros(len(requests.target_row), dtype=torch.int64)
    for chunk in _chunks(model.config.window, requests, len(items.vectors)):
        part = StaleRequests(*(rows[chunk] for rows in requests))
        facet_ids, item_ids, span = request_tokens(model.config.window, tokenizer, events, part)
        where = layout(torch.from_numpy(span.lengths))
        times_T = torch.from_numpy(events.timestamp[span.rows])
        hidden_TD = model(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), where, items, times_T)
        logits_BI = model.logits(model.profile_vector(hidden_TD, where), items.vectors)
        if not logits_BI[:, FIRST_KNOWN:].isfinite().all():
            raise DataError("the model's scores are not all numbers: its training went astray")
        targets_B = torch.from_numpy(events.item[part.target_row])
        found_P[chunk] = ranks(logits_BI, targets_B, masked_items(events, part, masked))
    return found_P


def _chunks(window: WindowConfig, requests: StaleRequests, num_rows: int) -> Iterator[NDArray[np.int64]]:
    """Places of requests, those of similar lengths together, the longest first."""
    lengths_P = np.minimum(requests.request_row - requests.first_row, window.window) + 1
    order = np.argsort(-lengths_P, kind="stable")
    first = 0
    while first < len(order):
        longest = int(lengths_P[order[first]])
        stop = first + max(1, min(_TOKENS_PER_CHUNK // longest, _SCORES_PER_CHUNK // num_rows))
        yield order[first:stop]
        first = stop
