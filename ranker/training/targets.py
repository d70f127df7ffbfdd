"""What a batch of rows is to be told: labels of its candidates, and what its newest tokens are to predict.

Shapes: B requests, C candidates over the batch, T packed tokens, R newest tokens of the requests, N tasks,
K columns of a head's label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.objectives.config import MultiTokenConfig
from foundation.objectives.labels import LabelColumns, token_labels
from foundation.objectives.multi_token import Pairs, event_pairs
from foundation.release import Release
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds, concatenate
from foundation.window import Span, span_rows
from ranker.rows.rows import Rows, take_events


class Targets(NamedTuple):
    """What a batch is to be told."""

    labels: Tensor
    """`[C, N]` float32, 0 or 1."""
    mask: Tensor
    """`[C, N]` bool, whether there is a label."""
    tokens: Tensor
    """`[R]` int64, which of the T packed tokens the sequence objectives read."""
    next_item: Tensor
    """`[R]` int64, the item row that follows each of them; below 2 where none is known."""
    pairs: Pairs | None = None
    """Of multi-token prediction; its tokens are places among the R."""
    heads: dict[str, Tensor] | None = None
    """`[R, K]` int64 classes by the heads' names, -1 where there is no label."""


class HeadLabels(NamedTuple):
    """Where the labels of a release's heads are read."""

    labels: tuple[LabelColumns, ...]
    tokenizer: Tokenizer
    feature_rows: NDArray[np.int64]
    """`[I, M]`, from `ItemFacts.feature_rows`."""


def head_labels(release: Release) -> HeadLabels | None:
    """Where the labels of the release's heads are read; None where it has none."""
    if release.heads is None:
        return None
    rows = release.model.item_tower.feature_rows.numpy()
    return HeadLabels(release.heads.labels, release.tokenizer, rows)


def targets(
    rows: Rows,
    tokens_per_request: int,
    multi_token: MultiTokenConfig | None = None,
    labels_of_heads: HeadLabels | None = None,
) -> Targets:
    """Labels of rows, and what each request's newest tokens are to predict.

    Token t of a history predicts its event t, and the request's own token what the profile did next. Multi-token
    prediction looks no further than that.

    Args:
        rows: B requests.
        tokens_per_request: the newest so many tokens of each request, its own among them.
        multi_token: predict sets of events; None, or a horizon of 0: the next item alone.
        labels_of_heads: from `head_labels`; None: heads aren't trained.
    """
    events, span = _newest_events(rows, tokens_per_request)
    token_ends = np.cumsum(rows.history_lengths + 1)
    tokens = span_rows(token_ends - span.lengths, token_ends).rows
    pairs, heads = None, None
    if multi_token is not None and multi_token.horizon:
        pairs = event_pairs(multi_token, events, span, np.cumsum(span.lengths))
    if labels_of_heads is not None:
        labels, tokenizer, feature_rows = labels_of_heads
        classes = token_labels(labels, tokenizer, events, span, feature_rows)
        heads = {name: torch.from_numpy(each) for name, each in classes.items()}
    return Targets(
        torch.from_numpy(rows.labels),
        torch.from_numpy(rows.mask),
        torch.from_numpy(tokens),
        torch.from_numpy(events.item),
        pairs,
        heads,
    )


def _newest_events(rows: Rows, tokens_per_request: int) -> tuple[EventIds, Span]:
    """What the newest tokens stand before, request by request: events of the history, then the next one; `[R]`."""
    histories, num_requests = rows.histories, len(rows)
    lengths = np.minimum(rows.history_lengths + 1, tokens_per_request)
    stops = histories.history_offsets[1:]
    of_history = take_events(histories.history, span_rows(stops - lengths + 1, stops).rows)
    ends = np.cumsum(lengths)
    is_next = np.zeros(lengths.sum(), dtype=bool)
    is_next[ends - 1] = True
    order = np.empty(len(is_next), dtype=np.int64)
    order[~is_next] = np.arange(len(of_history.item))
    order[is_next] = len(of_history.item) + np.arange(num_requests)
    return take_events(concatenate(of_history, rows.next_event), order), span_rows(ends - lengths, ends)
