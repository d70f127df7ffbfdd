"""What every block of one pass through the decoder reads beside its tokens; computed once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from foundation.attention_tiles import Tiles
from foundation.branches import Branches
from foundation.key_values import Joining, LayerKeyValues
from foundation.layout import Layout
from foundation.rotary import Rotation


class SharedInputs(NamedTuple):
    """Where tokens lie, how they are rotated, what they see, when they happen, and which of them are read."""

    layout: Layout
    angles: Rotation | None = None  # None: the blocks don't rotate
    tiles: Tiles | None = None  # None: a token sees all before it, by the plain path
    time_bucket: Tensor | None = None  # [B, N, Q, L] of query and key, where the blocks read times
    joining: Joining | None = None  # None: the tokens are whole sequences, nothing is stored
    branches: Branches | None = None  # None: the tokens are no branches of stored sequences
    seen: Tensor | None = None  # [B, 1, 1, S] stored tokens that branches see
    query_rows: Tensor | None = None  # [B] the tokens whose hidden states are read; None: all, [T]

    def read_of(self, x_TD: Tensor) -> Tensor:
        """The rows of `[T, ...]` whose hidden states are read: `[B, ...]`, or all."""
        return x_TD if self.query_rows is None else x_TD.index_select(0, self.query_rows)

    def joined(self, new: LayerKeyValues, stored: LayerKeyValues | None) -> LayerKeyValues:
        """Keys and values of stored and new tokens; `new` where nothing is stored."""
        if self.joining is None or stored is None:
            return new
        return LayerKeyValues(*(self.joining.join(a, b) for a, b in zip(stored, new, strict=True)))
