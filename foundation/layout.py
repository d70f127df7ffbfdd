"""Where packed tokens lie in the dense grid that attention works on.

Shapes: B sequences, T packed tokens, S longest sequence.

    lengths       2, 3, 1                       packed      a0 a1 | b0 b1 b2 | c0
    dense_index   0 1 0 | 2 3 4 | 5 0 0         (row in packed; padding points at row 0)
    packed_index  0 1 | 3 4 5 | 6               (row in the flattened B * S grid)
    positions     0 1 | 0 1 2 | 0
    last_index    1, 4, 5

Sequences are padded on the right. Under a causal mask no real token attends to what lies right of it, so padding
needs no mask of its own: what it holds is never read, and no gradient comes back from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Gather indices (int64) between packed tokens and the dense grid."""

    dense_index: Tensor  # [B, S], row in packed; 0 where padded
    packed_index: Tensor  # [T], row in the flattened B * S grid
    positions: Tensor  # [T], counted from the sequence's first token
    last_index: (
        Tensor  # [B], row of a sequence's last token in packed; 0 for an empty sequence, which has none
    )

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, `[B]` int64."""
        num_sequences, longest = self.dense_index.shape
        return torch.bincount(self.packed_index // max(longest, 1), minlength=num_sequences)

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on `device`."""
        return Layout(*(index.to(device) for index in self))


def layout(lengths: Tensor) -> Layout:
    """Build the gather indices of a ragged batch.

    Its shapes depend on data (T is the sum of `lengths`, S the maximum), so it runs ahead of the model, never inside
    an exported graph.

    Args:
        lengths: `[B]` integers, tokens per sequence; zero is allowed.
    """
    if lengths.dim() != 1 or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be integers of shape [B], got {lengths.dtype} of {tuple(lengths.shape)}"
        )
    num_sequences = lengths.numel()
    if num_sequences == 1 and (length := int(lengths)) > 0:  # what a server mostly answers: nothing is padded
        rows = torch.arange(length, device=lengths.device)
        return Layout(rows.unsqueeze(0), rows, rows, rows[-1:])
    lengths = lengths.long()
    if num_sequences and int(lengths.min()) < 0:
        raise ValueError(f"lengths must be >= 0, got {int(lengths.min())}")
    longest = int(lengths.max()) if num_sequences else 0
    ends = lengths.cumsum(0)
    starts = ends - lengths
    columns = torch.arange(longest, device=lengths.device)
    is_token = columns < lengths[:, None]
    dense_index = torch.where(is_token, starts[:, None] + columns, 0)
    return Layout(
        dense_index=dense_index,
        packed_index=is_token.flatten().nonzero().squeeze(1),
        positions=columns.expand(num_sequences, longest)[is_token],
        last_index=torch.where(lengths > 0, ends - 1, 0),
    )


def last_tokens(layout: Layout) -> Layout:
    """Of each sequence's last token alone, at the position that it has there; every sequence must have one."""
    rows = torch.arange(layout.last_index.shape[0], device=layout.last_index.device)
    return Layout(rows.unsqueeze(1), rows, layout.positions.index_select(0, layout.last_index), rows)
