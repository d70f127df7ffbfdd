"""What the two halves of the ranker read, and what their columns hold.

Shapes: B requests, T packed tokens (history and one request token each), S longest token sequence,
C candidates over the batch, F token facet columns, W id columns, X dense columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.layout import Layout
from foundation.tokens import EventIds
from ranker.features.candidate_features import CandidateFields
from ranker.features.columns import SparseField


class ProfileInputs(NamedTuple):
    """What the profile half reads: the tokens of B requests and their profile features."""

    facet_ids: Tensor
    """`[T, F]` int64: rows of the joint facet table."""
    item_ids: Tensor
    """`[T]` int64: item rows."""
    dense_index: Tensor
    """`[B, S]` int64, see `foundation.layout.Layout`."""
    packed_index: Tensor
    """`[T]` int64."""
    positions: Tensor
    """`[T]` int64."""
    last_index: Tensor
    """`[B]` int64: each request's own token."""
    sparse: Tensor
    """`[B, W_profile]` int64 id columns, -1 where there is no value."""
    dense: Tensor
    """`[B, X_profile]` float32."""

    @property
    def layout(self) -> Layout:
        """How packed tokens lie in the padded batch."""
        return Layout(self.dense_index, self.packed_index, self.positions, self.last_index)

    @property
    def token_offsets(self) -> Tensor:
        """`[B + 1]` of the packed tokens; every request has one of its own, so none of them is empty."""
        return torch.cat((self.last_index.new_zeros(1), self.last_index + 1))


class CandidateInputs(NamedTuple):
    """What the candidate half reads: item rows and what the request says of them, request by request."""

    item_rows: Tensor
    """`[C]` int64: item rows, 0 for an unknown item."""
    offsets: Tensor
    """`[B + 1]` int64: request `b` owns candidates `offsets[b]` to `offsets[b + 1]`."""
    sparse: Tensor
    """`[C, W_candidate]` int64 id columns of the candidate features, -1 where there is no value; W may be 0."""
    dense: Tensor
    """`[C, X_candidate]` float32; X may be 0."""

    def one_request_each(self, first: int, last: int) -> CandidateInputs:
        """Candidates `first` to `last`, each as the only one of a request of its own."""
        offsets = torch.arange(last - first + 1)
        return CandidateInputs(
            self.item_rows[first:last], offsets, self.sparse[first:last], self.dense[first:last]
        )

    @classmethod
    def without_features(cls, item_rows: Tensor, offsets: Tensor) -> CandidateInputs:
        """Candidates of a ranker that declares no candidate features."""
        return cls(item_rows, offsets, item_rows.new_empty(len(item_rows), 0), torch.empty(len(item_rows), 0))


class CandidateMarks(NamedTuple):
    """Candidates of which training hides something; see `ranker.training.augmentation`."""

    never_seen: Tensor
    """`[C]` bool: ranked as titles without a past: no id of their own, as unpopular as any."""
    without_decoder: Tensor
    """`[C]` bool: ranked without their item vector, and so without what the decoder says of them."""


class ProfileFields(NamedTuple):
    """What the profile side's `sparse` and `dense` inputs hold."""

    sparse: tuple[SparseField, ...]
    num_dense: int


class FeatureFields(NamedTuple):
    """What the inputs of both sides hold."""

    profile: ProfileFields
    candidates: CandidateFields


class ProfileFeatures(NamedTuple):
    """Declared profile features after lookup; co-training looks all profiles up once and takes rows."""

    sparse: NDArray[np.int64]
    """`[B, W]` ids, -1 where there is no value."""
    dense: NDArray[np.float32]
    """`[B, X]` standardised numbers, 0 where there is no value."""


class TokenizedHistories(NamedTuple):
    """B requests after vocabulary lookup: what raw requests and a pre-tokenised dataset both lead to."""

    history: EventIds
    """All requests' events, each already cut to its window."""
    history_offsets: NDArray[np.int64]
    """`[B + 1]`."""
    num_events_before: NDArray[np.int64]
    """`[B]`, events of the profile that came before the ones in `history`."""
    request: EventIds
    """One row per request, from `Tokenizer.request_ids`."""
    profile: ProfileFeatures
