"""Requests in raw values, exactly as they come over the wire: what the feature builder reads.

Shapes: B requests, T history events over the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Histories(NamedTuple):
    """B requests with their histories, in raw values (hashed strings, unix seconds, `NO_VALUE` padding).

    Categorical values are int64, numeric ones float32, multi-valued ones int64 `[.., max_values]`.
    """

    history_lengths: np.ndarray
    """`[B]` int64: events of each request's history, at most the window."""
    num_events_before: np.ndarray
    """`[B]` int64: events of the profile that came before the ones sent."""
    item_id: np.ndarray
    """`[T]` int64: raw item ids, request by request, oldest first."""
    timestamp: np.ndarray
    """`[T]` int64: unix seconds."""
    facets: dict[str, np.ndarray]
    """Every facet of the schema by name: `[T]` or `[T, max_values]`."""
    request_timestamp: np.ndarray
    """`[B]` int64: unix seconds."""
    request_facets: dict[str, np.ndarray]
    """The *when* and *where* facets of the requests themselves: `[B]` or `[B, max_values]`."""
    profile_features: dict[str, np.ndarray]
    """Every profile feature of the schema by name: `[B]` or `[B, max_values]`."""
