"""`marquee::decoder_step` on a GPU: cuBLAS for the linear layers, the Triton kernel for attention.

Compared with the decoder under the interpreter; never run on a GPU, never timed.

Shapes: T new tokens, S stored tokens, B sequences, L layers, P positions, D model width, H heads, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.kernels.attention.gpu import Tokens, attention_gpu
from serving.kernels.linear.panels import PANEL, unpack
from serving.kernels.operands import INDEX, check_operand


class _Layer(NamedTuple):
    """A layer's weights, in the order in which the op takes them."""

    norm: Tensor
    norm_bias: Tensor
    qkv: Tensor
    out: Tensor
    feed_forward_norm: Tensor
    feed_forward_norm_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor


class _Batch(NamedTuple):
    """What is the same for every layer."""

    offsets: Tensor
    rotation_T1K: Tensor
    """Cosines, then sines."""
    stored_offsets: Tensor | None
    sight: tuple[bool, int, int]
    """Branches, window, prefix."""
    num_heads: int


def decoder_step_gpu(
    x: Tensor,
    offsets: Tensor,
    rotations: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    stored: list[Tensor],
    stored_offsets: Tensor | None,
    num_heads: int,
    branches: bool,
    window: int,
    num_prefix: int,
    last_only: bool,
    num_kept: int,
) -> tuple[Tensor, list[Tensor]]:
    """See `serving.kernels.decoder.ops.decoder_step`; of the offsets only what follows is looked at.

    It waits for the GPU once, for the greatest position and the shortest sequence: a gather beyond its table would
    end the whole process's GPU context instead of raising. Packed weights are unpacked at every call, which moves
    each twice; a cache would have to hold them twice.

    Raises:
        ValueError: if a shape, a stride or a position is wrong, or a sequence has no last new token to return.
        TypeError: if a dtype is wrong, int8 linears among them: they are the CPU's.
    """
    if scales or any(weight.dtype == torch.int8 for weight in weights):
        raise TypeError("linear weights are int8; on a GPU they must be torch.float32 (--linears float32)")
    layers = [_Layer(*weights[at : at + 10]) for at in range(0, len(weights) - 2, 10)]
    _check(x, offsets, rotations, layers, weights[-2:], num_heads)
    _check_stored(
        stored, stored_offsets, (len(layers), offsets.numel() - 1, num_heads, rotations.shape[1]), x
    )
    positions = _positions(x.shape[0], offsets, stored_offsets, branches)
    _check_values(positions, rotations.shape[0], offsets if last_only else None)
    sight = (branches, window, num_prefix)
    batch = _Batch(offsets, rotations[positions].unsqueeze(1), stored_offsets, sight, num_heads)

    kept = []
    for number, layer in enumerate(layers):
        of_last = last_only and number == len(layers) - 1
        x, new = _step(x, layer, stored[2 * number : 2 * number + 2], batch, of_last)
        if number >= len(layers) - num_kept:
            kept += [new.keys.contiguous(), new.values.contiguous()]
    return _norm(x, *weights[-2:]), kept


def _step(
    x: Tensor, layer: _Layer, stored: list[Tensor], batch: _Batch, of_last: bool
) -> tuple[Tensor, Tokens]:
    """One layer: `[T, D]` to `[T, D]`, or `[B, D]` of the sequences' last tokens; and the new keys and values."""
    normed, D = _norm(x, layer.norm, layer.norm_bias), x.shape[1]
    qkv = F.linear(normed, unpack(layer.qkv, 3 * D)).unflatten(1, (3 * batch.num_heads, -1))
    q, k = _rotate(qkv[:, : 2 * batch.num_heads], batch.rotation_T1K).chunk(2, dim=1)
    new = Tokens(k, qkv[:, 2 * batch.num_heads :], batch.offsets)
    query_offsets = batch.offsets
    if of_last:
        last = batch.offsets[1:] - 1
        query_offsets = torch.arange(batch.offsets.numel(), device=x.device)
        x, q = x[last], q[last]
    earlier = Tokens(stored[0], stored[1], batch.stored_offsets) if batch.stored_offsets is not None else None
    attended = attention_gpu(q, query_offsets, new, earlier, *batch.sight)
    x = x + F.linear(attended.flatten(1), unpack(layer.out, D))
    normed = _norm(x, layer.feed_forward_norm, layer.feed_forward_norm_bias)
    widened = F.linear(normed, unpack(layer.widen, layer.widen_bias.numel()), layer.widen_bias)
    return x + F.linear(F.gelu(widened), unpack(layer.narrow, D), layer.narrow_bias), new


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + K/2}) of `[T, heads, K]` by its token's angle."""
    (first, second), (cos, sin) = x.chunk(2, dim=-1), rotation.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def _positions(num_tokens: int, offsets: Tensor, stored_offsets: Tensor | None, branches: bool) -> Tensor:
    """`[T]` int64: where each new token lies in its sequence."""
    tokens = torch.arange(num_tokens, device=offsets.device)
    sequence = torch.searchsorted(offsets[1:].long(), tokens, right=True)
    stored = 0 if stored_offsets is None else stored_offsets.long().diff()[sequence]
    return stored + torch.zeros_like(tokens) if branches else stored + tokens - offsets.long()[sequence]


def _check_values(positions: Tensor, num_positions: int, offsets: Tensor | None) -> None:
    greatest = positions.amax() if positions.numel() else positions.new_tensor(-1)
    lengths = positions.new_ones(1) if offsets is None else offsets.diff()
    shortest = lengths.amin() if lengths.numel() else positions.new_tensor(1)
    greatest, shortest = torch.stack((greatest, shortest.long())).tolist()
    if greatest >= num_positions:
        raise ValueError(f"a token is at position {greatest}; rotations are of {num_positions} positions")
    if shortest < 1:
        raise ValueError("a sequence has no new token; each needs a last one, which is to be returned")


def _check(
    x: Tensor, offsets: Tensor, rotations: Tensor, layers: list[_Layer], norm: list[Tensor], num_heads: int
) -> None:
    if x.dim() != 2 or rotations.dim() != 2 or rotations.shape[1] * num_heads != x.shape[1]:
        raise ValueError(
            f"x and rotations have shapes {list(x.shape)}, {list(rotations.shape)}; they must be [T, D], [P, K] "
            f"with D = {num_heads} heads times K"
        )
    (T, D), device = x.shape, x.device
    check_operand("x", x, (T, D), device)
    check_operand("offsets", offsets, (offsets.numel(),), device, INDEX)
    check_operand("rotations", rotations, rotations.shape, device)
    for number, layer in enumerate(layers):
        wide = layer.widen_bias.numel()
        shapes = {
            "norm": (D,), "norm_bias": (D,), "qkv": _packed(3 * D, D), "out": _packed(D, D),
            "feed_forward_norm": (D,), "feed_forward_norm_bias": (D,), "widen": _packed(wide, D),
            "widen_bias": (wide,), "narrow": _packed(D, wide), "narrow_bias": (D,),
        }  # fmt: skip
        for name, shape in shapes.items():
            check_operand(f"layer {number}'s {name}", getattr(layer, name), shape, device)
    for tensor in norm:
        check_operand("final norm", tensor, (D,), device)


def _packed(num_outputs: int, num_inputs: int) -> tuple[int, int, int]:
    return -(-num_outputs // PANEL), num_inputs, PANEL


def _check_stored(
    stored: list[Tensor], stored_offsets: Tensor | None, sizes: tuple[int, int, int, int], x: Tensor
) -> None:
    num_layers, B, H, K = sizes
    if len(stored) != (0 if stored_offsets is None else 2 * num_layers):
        raise ValueError(
            f"stored has {len(stored)} tensors; it must be keys and values of {num_layers} layers, with their "
            "offsets, or none"
        )
    if stored_offsets is not None:
        check_operand("stored_offsets", stored_offsets, (B + 1,), x.device, INDEX)
        for tensor in stored:
            check_operand("stored", tensor, (stored[0].shape[0], H, K), x.device)
