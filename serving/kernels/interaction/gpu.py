"""`marquee::interaction_first_layer` as a Triton kernel.

Compiled for sm_80 and sm_90 and compared with the reference under the interpreter; never run on a GPU, never timed.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
_ACCUMULATORS_PER_PROGRAM = 1024  # 8 registers of each of 128 threads; with 16, odd widths spill
_MAX_HIDDEN_BLOCK = 256
_MAX_DOT_BLOCK = 32


@triton.jit
def first_layer_kernel(
    x_ptr,
    e_ptr,
    p_ptr,
    q_ptr,
    w_ptr,
    offsets_ptr,
    out_ptr,
    C,
    B,
    H: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program computes `BLOCK_C` candidates, of whatever requests, times `BLOCK_H` hidden units."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_C = c < C
    in_H = h < H
    in_CH = in_C[:, None] & in_H[None, :]
    c = c.to(tl.int64)  # c * H passes 2^31 for large batches

    # The last request whose first candidate is at or before c: bisection, all candidates at once.
    low = tl.zeros([BLOCK_C], dtype=tl.int64)
    span = B
    while span > 1:
        half = span // 2
        begin = tl.load(offsets_ptr + low + half).to(tl.int64)
        low = tl.where(begin <= c, low + half, low)
        span -= half
    r = low

    hidden = tl.load(x_ptr + c[:, None] * H + h[None, :], mask=in_CH, other=0.0)
    hidden += tl.load(p_ptr + r[:, None] * H + h[None, :], mask=in_CH, other=0.0)
    for k in range(K):
        dot = tl.zeros([BLOCK_C], dtype=tl.float32)
        for start in range(0, E, BLOCK_E):
            i = start + tl.arange(0, BLOCK_E)
            in_CE = in_C[:, None] & (i < E)[None, :]
            e = tl.load(e_ptr + c[:, None] * E + i[None, :], mask=in_CE, other=0.0)
            q = tl.load(q_ptr + (r[:, None] * K + k) * E + i[None, :], mask=in_CE, other=0.0)
            dot += tl.sum(e * q, axis=1)
        w = tl.load(w_ptr + k * H + h, mask=in_H, other=0.0)
        hidden += dot[:, None] * w[None, :]
    # As torch.relu: NaN stays NaN.
    hidden = tl.where(hidden < 0, 0.0, hidden)
    tl.store(out_ptr + c[:, None] * H + h[None, :], hidden, mask=in_CH)


def block_sizes(H: int, E: int) -> dict[str, int]:
    """The kernel's block sizes for hidden width `H` and dot-product width `E`."""
    block_h = min(_power_of_two(H), _MAX_HIDDEN_BLOCK)
    return {
        "BLOCK_C": _ACCUMULATORS_PER_PROGRAM // max(block_h, 64),
        "BLOCK_H": block_h,
        "BLOCK_E": min(_power_of_two(E), _MAX_DOT_BLOCK),
    }


def _power_of_two(width: int) -> int:
    """The least power of two that holds `width`, and at least 16: tiles are powers of two."""
    return max(16, 1 << (width - 1).bit_length())


def first_layer_gpu(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """See `serving.kernels.interaction.ops.interaction_first_layer`; the values of `offsets` are not checked.

    Raises:
        ValueError: if a shape or a stride is wrong.
        TypeError: if a dtype is wrong.
    """
    _check(x, e, p, q, w, offsets)
    (C, H), (B, K, E) = x.shape, q.shape
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    blocks = block_sizes(H, E)
    grid = (triton.cdiv(C, blocks["BLOCK_C"]), triton.cdiv(H, blocks["BLOCK_H"]))
    launch: Any = first_layer_kernel[grid]  # its type doesn't know the launcher's own num_warps
    launch(x, e, p, q, w, offsets, out, C, B, H, E, K, **blocks, num_warps=NUM_WARPS)
    return out


def _check(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> None:
    if x.dim() != 2 or q.dim() != 3:
        raise ValueError(
            f"x and q have shapes {list(x.shape)}, {list(q.shape)}; they must be [C, H], [B, K, E]"
        )
    (C, H), (B, K, E) = x.shape, q.shape
    expected = {"x": (x, (C, H)), "e": (e, (C, E)), "p": (p, (B, H)), "q": (q, (B, K, E)), "w": (w, (K, H))}
    for name, (tensor, shape) in expected.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} is {tensor.dtype}; it must be torch.float32")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"offsets is {offsets.dtype}; it must be torch.int64 or torch.int32")
    if offsets.shape != (B + 1,):
        raise ValueError(f"offsets has shape {list(offsets.shape)}; it must be [{B + 1}]")
    for name, tensor in {**{name: pair[0] for name, pair in expected.items()}, "offsets": offsets}.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {list(tensor.stride())}; it must be contiguous")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {x.device} with x")
