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

from serving.kernels.operands import INDEX, check_operand
from serving.kernels.ragged.gpu import owner, power_of_two

LAUNCH = {"num_warps": 4}
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

    r = owner(offsets_ptr, c, B, BLOCK_C)

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
    block_h = min(power_of_two(H), _MAX_HIDDEN_BLOCK)
    return {
        "BLOCK_C": _ACCUMULATORS_PER_PROGRAM // max(block_h, 64),
        "BLOCK_H": block_h,
        "BLOCK_E": min(power_of_two(E), _MAX_DOT_BLOCK),
    }


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
    launch: Any = first_layer_kernel[grid]  # its type doesn't know the launcher's own arguments
    launch(x, e, p, q, w, offsets, out, C, B, H, E, K, **blocks, **LAUNCH)
    return out


def _check(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> None:
    if x.dim() != 2 or q.dim() != 3:
        raise ValueError(
            f"x and q have shapes {list(x.shape)}, {list(q.shape)}; they must be [C, H], [B, K, E]"
        )
    (C, H), (B, K, E) = x.shape, q.shape
    expected = {"x": (x, (C, H)), "e": (e, (C, E)), "p": (p, (B, H)), "q": (q, (B, K, E)), "w": (w, (K, H))}
    for name, (tensor, shape) in expected.items():
        check_operand(name, tensor, shape, x.device)
    check_operand("offsets", offsets, (B + 1,), x.device, INDEX)
