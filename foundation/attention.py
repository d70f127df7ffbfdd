"""Causal self-attention over packed sequences, with rotary positions.

Shapes: T packed tokens, B sequences, S longest sequence, D model width, H heads, K head width.

Linear layers see the T real tokens only. Attention alone is dense: two gathers, whose indices a `Layout` holds, lead
to `[B, H, S, K]` and back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.layout import Layout

ROTARY_BASE = 10_000.0


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles; computed once and shared by all layers."""

    cos: Tensor  # [T, 1, K / 2]
    sin: Tensor  # [T, 1, K / 2]


def rotation(positions: Tensor, head_width: int) -> Rotation:
    """Angles `position * base^(-2i / K)` for i < K / 2 (RoFormer, arXiv 2104.09864, section 3.2.2).

    Args:
        positions: `[T]` integers, counted from the sequence's first token.
        head_width: K, even.
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device) / head_width
    angles = positions[:, None, None] * ROTARY_BASE**-exponents
    return Rotation(angles.cos(), angles.sin())


def rotary(x_THK: Tensor, angles: Rotation) -> Tensor:
    """Rotate each pair (x_i, x_{i + K/2}) by its angle, so that q·k depends on the distance alone; `[T, H, K]`."""
    first, second = x_THK.chunk(2, dim=-1)
    return torch.cat(
        (first * angles.cos - second * angles.sin, first * angles.sin + second * angles.cos), dim=-1
    )


def causal_attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, layout: Layout) -> Tensor:
    """softmax(q·k / sqrt(K)) v within each sequence, over a token and those before it; `[T, H, K]`."""
    q_BHSK, k_BHSK, v_BHSK = (_to_dense(x_THK, layout) for x_THK in (q_THK, k_THK, v_THK))
    out_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=True)
    return out_BHSK.transpose(1, 2).flatten(0, 1).index_select(0, layout.packed_index)


def _to_dense(x_THK: Tensor, layout: Layout) -> Tensor:
    # index_select, not x[index]: on a CPU its backward is about ten times faster.
    gathered = x_THK.index_select(0, layout.dense_index.flatten())
    return gathered.unflatten(0, layout.dense_index.shape).transpose(1, 2)


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each token over itself and the tokens before it.

    Args:
        width: D, a multiple of `num_heads`.
        num_heads: H; the head width D / H must be even, for rotary positions.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(self, x_TD: Tensor, angles: Rotation, layout: Layout) -> Tensor:
        """`[T, D]` to `[T, D]`."""
        qk_TD, v_TD = self.project_in(x_TD).split((2 * x_TD.shape[-1], x_TD.shape[-1]), dim=-1)
        q_THK, k_THK = rotary(qk_TD.unflatten(-1, (2 * self.num_heads, -1)), angles).chunk(2, dim=1)
        out_THK = causal_attention(q_THK, k_THK, v_TD.unflatten(-1, (self.num_heads, -1)), layout)
        return self.project_out(out_THK.flatten(1))
