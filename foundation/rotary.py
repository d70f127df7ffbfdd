"""Rotary positions: queries and keys turned by their position, so that a score depends on the distance alone.

Shapes: T packed tokens, H heads, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
