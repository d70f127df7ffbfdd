"""`marquee::decoder_step`: registration, and the function that calls it.

Shapes: T new tokens, B sequences, S stored tokens, D model width, H heads, K head width, F feed-forward width,
P positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving.kernels.extension import load_extension

load_extension()

_NAME = "marquee::decoder_step"
WEIGHTS_PER_LAYER = 10


class Sight(NamedTuple):
    """Which tokens a token sees."""

    branches: bool = False
    """Every new token continues its stored sequence alone: it sees stored tokens and itself."""
    window: int = 0
    """0: all tokens before it; else those nearer than this, itself at distance 0."""
    num_prefix: int = 0
    """First tokens of a sequence, seen from everywhere."""


SEES_ALL = Sight()


class Stored(NamedTuple):
    """Keys and values of earlier tokens."""

    tensors: list[Tensor]
    """Keys, values by layer, lowest first, each `[S, H, K]`; keys rotated."""
    offsets: Tensor
    """`[B + 1]` of the stored tokens."""


class Weights(NamedTuple):
    """Of the decoder's layers, lowest first."""

    tensors: list[Tensor]
    """By layer: norm 1 weight, bias; query-key-value, out (packed); norm 2 weight, bias; feed-forward 1 (packed), bias,
    2 (packed), bias. At the end the final norm's weight, bias."""
    scales: list[Tensor]
    """Of int8 weights, one for each packed tensor; empty for float32."""
    rotations: Tensor
    """`[P, K]`, by position K / 2 cosines, then K / 2 sines."""
    num_heads: int


def decoder_step(
    x: Tensor, offsets: Tensor, weights: Weights, stored: Stored | None = None, sight: Sight = SEES_ALL,
    last_only: bool = False, num_kept: int = 0,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """A decoder of plain blocks over new tokens beside stored keys and values, in one operator.

    Token `i` of a sequence sits at position `stored + i` (a branch at `stored`). For inference: backward through it
    raises. A sequence's result depends neither on its neighbours in the batch nor on the number of threads.

    Args:
        x: `[T, D]` float32, contiguous, as every operand: new tokens, packed.
        offsets: `[B + 1]` int64 or int32: sequence `b` has new tokens `offsets[b]` to `offsets[b + 1]`, maybe none.
        weights: of the layers to pass.
        stored: of the same layers; None where nothing is stored.
        sight: which tokens a token sees.
        last_only: only the last new token of each sequence is wanted (each must have one): of the last layer nothing
            else is computed but keys and values.
        num_kept: layers whose keys and values of the new tokens are given back, from the top down.

    Returns:
        Hidden states under the final norm, `[T, D]`, or `[B, D]` if `last_only`; and keys, values by kept layer,
        lowest first, each `[T, H, K]`.

    Raises:
        ValueError: if a shape, a stride, an offset or a position is wrong.
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.decoder_step(
        x, offsets, weights.rotations, weights.tensors, weights.scales,
        [] if stored is None else stored.tensors, None if stored is None else stored.offsets,
        weights.num_heads, *sight, last_only, num_kept,
    )  # fmt: skip


def _fake(
    x: Tensor, offsets: Tensor, rotations: Tensor, weights: list[Tensor], scales: list[Tensor],
    stored: list[Tensor], stored_offsets: Tensor | None, num_heads: int, branches: bool, window: int,
    num_prefix: int, last_only: bool, num_kept: int,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    T, D = x.shape
    hidden = x.new_empty(offsets.shape[0] - 1 if last_only else T, D)
    return hidden, [x.new_empty(T, num_heads, D // num_heads) for _ in range(2 * num_kept)]


def _cuda(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    # Imported here because the kernel language is installed on development and GPU machines only.
    from serving.kernels.decoder.gpu import decoder_step_gpu  # noqa: PLC0415

    return decoder_step_gpu(*arguments)


torch.library.register_fake(_NAME, _fake)
torch.library.register_kernel(_NAME, "cuda", _cuda)
