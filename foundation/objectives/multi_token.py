"""Multi-token prediction: each token predicts the set of the next events with one head, the sooner the more.

    L = -sum_i w_i log p(y_i | x),    w_i = r_i * exp(-ln 2 * dt_i / half_life)          (arXiv 2605.23312)

dt_i is the time from the token's own *when* to event i, r_i the event's signal. The token's own event is i = 0,
with dt = 0: horizon 1 is next-item training. An item that comes twice in the horizon counts with both weights.

Letters: T packed tokens, B sequences, P (token, event) pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.objectives.config import MultiTokenConfig
from foundation.objectives.signal import Signal
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import Span, span_rows


class Pairs(NamedTuple):
    """What tokens are to predict: any number of weighted items each."""

    token: Tensor  # [P] int64, place of the token in the batch
    item: Tensor  # [P] int64, item row
    weight: Tensor  # [P] float32, above 0


def event_pairs(
    config: MultiTokenConfig,
    events: EventIds,
    span: Span,
    stops: NDArray[np.int64],
    signal: Signal | None = None,
) -> Pairs:
    """The pairs of a batch: token t with its own event and those after it, `horizon` of them at most.

    Events whose item is unknown, or whose weight is 0, make no pair.

    Args:
        config: its horizon is at least 1.
        events: looked-up events of the dataset, each profile's in order.
        span: the batch's tokens; token t is of event `span.rows[t]`.
        stops: `[B]`, one past the last event of each sequence that training may see, at or behind its window's end.
        signal: gives r, at least 0; None: 1.
    """
    last = np.repeat(np.asarray(stops, np.int64), span.lengths)
    ahead = span_rows(span.rows, np.minimum(span.rows + config.horizon, last))
    token = np.repeat(np.arange(len(span.rows)), ahead.lengths)
    elapsed = np.maximum(events.timestamp[ahead.rows] - events.timestamp[span.rows[token]], 0)
    weight = np.ones(len(token)) if signal is None else signal.weights(events, ahead.rows).astype(np.float64)
    if config.half_life:
        steps = ahead.rows - span.rows[token]
        distance = elapsed if config.half_life_unit == "seconds" else steps
        weight = weight * np.exp2(-distance / config.half_life)
    kept = (events.item[ahead.rows] >= FIRST_KNOWN) & (weight > 0)
    if config.seconds:
        kept &= elapsed <= config.seconds
    token, rows, weight = token[kept], ahead.rows[kept], weight[kept]
    if config.normalise:
        weight = weight / np.bincount(token, weights=weight, minlength=1)[token]
    return Pairs(
        torch.from_numpy(token),
        torch.from_numpy(events.item[rows]),
        torch.from_numpy(weight.astype(np.float32)),
    )
