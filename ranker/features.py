"""From raw requests to model inputs: the one library used by co-training and by the server.

Shapes: B requests, T packed tokens (history and one request token each), S longest token sequence,
C candidates over the batch, F token facet columns, W id columns, X dense columns.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from foundation.layout import Layout


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


class CandidateInputs(NamedTuple):
    """What the candidate half reads: item rows, request by request."""

    item_rows: Tensor
    """`[C]` int64: item rows, 0 for an unknown item."""
    offsets: Tensor
    """`[B + 1]` int64: request `b` owns candidates `offsets[b]` to `offsets[b + 1]`."""
