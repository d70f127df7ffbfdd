"""Keys and values that a decoder has computed, kept so that later tokens need not compute them again.

Shapes: T stored tokens, B sequences, L layers, H heads, K head width.

    stored   a0 a1 | b0          new   a2 | b1 b2          joined   a0 a1 a2 | b0 b1 b2
    join_index, rows of (stored, new) end to end:                   0  1  3  | 2  4  5
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foundation.layout import Layout, layout


class LayerKeyValues(NamedTuple):
    """Keys and values of one layer; keys are rotated already where the block rotates them."""

    keys_THK: Tensor
    values_THK: Tensor


class KeyValues(NamedTuple):
    """Jagged keys and values of every layer, and where each sequence begins."""

    layers: tuple[LayerKeyValues, ...]  # L times [T, H, K]
    offsets: Tensor  # [B + 1] int64
    times_T: Tensor | None = None  # int64 unix seconds, where the blocks read times


class Joining(NamedTuple):
    """Where stored and new tokens lie once they are joined."""

    join_index: Tensor  # [T stored + T new], rows of (stored, new) end to end
    key_layout: Layout  # of the joined tokens
    new_layout: Layout  # of the new tokens, with positions that continue those of the stored

    def join(self, stored: Tensor, new: Tensor) -> Tensor:
        """`[T stored, ...]` and `[T new, ...]` to `[T stored + T new, ...]`, sequence by sequence."""
        return torch.cat((stored, new)).index_select(0, self.join_index)


def joining(new_layout: Layout, offsets: Tensor) -> Joining:
    """Prepare to append the tokens of `new_layout` to stored sequences.

    Args:
        new_layout: as from `layout(lengths)`: positions count from the first new token.
        offsets: `[B + 1]` of the stored tokens.

    Raises:
        ValueError: if the two are of different numbers of sequences.
    """
    num_sequences = new_layout.dense_index.shape[0]
    if offsets.numel() != num_sequences + 1:
        raise ValueError(
            f"new tokens are of {num_sequences} sequences, stored keys and values of {offsets.numel() - 1}: "
            "give every stored sequence a length, 0 where nothing is new"
        )
    stored_lengths, new_lengths = offsets.diff(), new_layout.lengths
    sequences = torch.arange(num_sequences, device=offsets.device)
    of_token = torch.cat(
        (sequences.repeat_interleave(stored_lengths), sequences.repeat_interleave(new_lengths))
    )
    continued = new_layout.positions + stored_lengths.repeat_interleave(new_lengths)
    return Joining(
        join_index=of_token.argsort(stable=True),
        key_layout=layout(stored_lengths + new_lengths),
        new_layout=new_layout._replace(positions=continued),
    )
