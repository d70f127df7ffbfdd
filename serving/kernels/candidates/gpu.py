"""`marquee::score_candidates` as a Triton kernel.

Compiled for sm_80 and sm_90 and compared with the reference under the interpreter; never run on a GPU, never timed.

Shapes: B requests, C candidates over the batch, I items, K dot products, E dot-product width, H first hidden width,
F candidate features, D width of a crossed candidate, M second layer's width, N tasks.

One kernel holds the first layer and the one after it. A program has `BLOCK_C` candidates, of whatever requests: it
gathers their table rows, computes their dot products, then walks the first layer in chunks of `BLOCK_H` units, each
made in registers and at once multiplied into the next layer's `BLOCK_M` sums. So the first layer, the widest, is never
whole anywhere, and its width has no limit. Where the next layer fits into one program and only the heads come after it,
they too are taken from registers. What remains of deeper MLPs is plain products of matrices in memory, which cuBLAS
does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from serving.kernels.linear.panels import PANEL, unpack
from serving.kernels.operands import FLOAT, INDEX, check_operand
from serving.kernels.ragged.gpu import owner, power_of_two

LAUNCH = {"num_warps": 8, "num_stages": 1}  # with more stages some widths spill a few bytes
_MAX_BLOCK_M = 256


@triton.jit
def _panels(packed_ptr, rows, columns, num_rows, num_panels, PANEL: tl.constexpr):
    """Rows (inputs) and columns (outputs) of packed weights `[panels, rows, PANEL]`; 0 outside."""
    at = (columns // PANEL)[None, :] * num_rows * PANEL + rows[:, None] * PANEL + (columns % PANEL)[None, :]
    inside = (rows < num_rows)[:, None] & (columns < num_panels * PANEL)[None, :]
    return tl.load(packed_ptr + at, mask=inside, other=0.0)


@triton.jit
def _times_panels(
    sums, x_ptr, c, in_C, packed_ptr, columns, num_panels, WIDTH: tl.constexpr, PANEL: tl.constexpr
):
    """`sums + x[c] @ weights[:, columns]`, for x `[C, WIDTH]` and packed weights."""
    for start in range(0, WIDTH, PANEL):
        i = start + tl.arange(0, PANEL)
        inside = in_C[:, None] & (i < WIDTH)[None, :]
        x = tl.load(x_ptr + c[:, None] * WIDTH + i[None, :], mask=inside, other=0.0)
        weights = _panels(packed_ptr, i, columns, WIDTH, num_panels, PANEL)
        sums = tl.dot(x, weights, sums, input_precision="ieee")
    return sums


@triton.jit(
    do_not_specialize=["C", "B"]
)  # one program for all batches, the one that was looked at for spills
def score_kernel(
    rows_ptr,
    offsets_ptr,
    x_table_ptr,
    e_table_ptr,
    x_scale_ptr,
    e_scale_ptr,
    p_ptr,
    q_ptr,
    w_ptr,
    features_ptr,
    features_weight_ptr,
    crossed_ptr,
    crossed_weight_ptr,
    weight_ptr,
    bias_ptr,
    head_ptr,
    head_bias_ptr,
    out_ptr,
    C,
    B,
    H: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    F: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALED: tl.constexpr,
    HAS_HEAD: tl.constexpr,
    RELU: tl.constexpr,
    PANEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One program computes `BLOCK_C` candidates times `BLOCK_M` units of the second layer, or times all heads."""
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    in_C = c < C
    request = owner(offsets_ptr, tl.minimum(c, C - 1), B, BLOCK_C)
    row = tl.load(rows_ptr + c, mask=in_C, other=0)

    x_scale = tl.full([BLOCK_C], 1.0, dtype=tl.float32)
    dots = tl.zeros([BLOCK_C, BLOCK_K], dtype=tl.float32)
    for start in range(0, E, BLOCK_E):
        i = start + tl.arange(0, BLOCK_E)
        in_E = i < E
        e = tl.load(e_table_ptr + row[:, None] * E + i[None, :], mask=in_C[:, None] & in_E[None, :], other=0)
        q_at = (request[:, None, None] * K + k[None, :, None]) * E + i[None, None, :]
        in_Q = in_C[:, None, None] & (k < K)[None, :, None] & in_E[None, None, :]
        q = tl.load(q_ptr + q_at, mask=in_Q, other=0.0)
        dots += tl.sum(e.to(tl.float32)[:, None, :] * q, axis=2)
    if SCALED:
        x_scale = tl.load(x_scale_ptr + row, mask=in_C, other=0.0)
        dots *= tl.load(e_scale_ptr + row, mask=in_C, other=0.0)[:, None]

    sums = tl.zeros([BLOCK_C, BLOCK_M], dtype=tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        in_H = h < H
        in_CH = in_C[:, None] & in_H[None, :]
        x = tl.load(x_table_ptr + row[:, None] * H + h[None, :], mask=in_CH, other=0).to(tl.float32)
        hidden = x * x_scale[:, None]
        hidden += tl.load(p_ptr + request[:, None] * H + h[None, :], mask=in_CH, other=0.0)
        w = tl.load(w_ptr + k[:, None] * H + h[None, :], mask=(k < K)[:, None] & in_H[None, :], other=0.0)
        hidden = tl.dot(dots, w, hidden, input_precision="ieee")
        panels = tl.cdiv(H, PANEL)
        hidden = _times_panels(hidden, features_ptr, c, in_C, features_weight_ptr, h, panels, F, PANEL)
        hidden = _times_panels(hidden, crossed_ptr, c, in_C, crossed_weight_ptr, h, panels, D, PANEL)
        hidden = tl.where(hidden < 0, 0.0, hidden)  # as torch.relu: NaN stays NaN
        weights = _panels(weight_ptr, h, m, H, tl.cdiv(M, PANEL), PANEL)
        sums = tl.dot(hidden, weights, sums, input_precision="ieee")

    sums += tl.load(bias_ptr + m, mask=m < M, other=0.0)[None, :]
    if RELU:
        sums = tl.where(sums < 0, 0.0, sums)
    if HAS_HEAD:
        n = tl.arange(0, PANEL)
        head = _panels(head_ptr, m, n, M, 1, PANEL)
        logits = tl.dot(sums, head, input_precision="ieee")
        logits += tl.load(head_bias_ptr + n, mask=n < N, other=0.0)[None, :]
        tl.store(out_ptr + c[:, None] * N + n[None, :], logits, mask=in_C[:, None] & (n < N)[None, :])
    else:
        tl.store(out_ptr + c[:, None] * M + m[None, :], sums, mask=in_C[:, None] & (m < M)[None, :])


def block_sizes(num_dots: int, second_width: int) -> dict[str, int]:
    """The kernel's block sizes for K dot products and a second layer of width M."""
    return {
        "BLOCK_C": 32,
        "BLOCK_E": 16,
        "BLOCK_K": power_of_two(num_dots),
        "BLOCK_H": 16,
        "BLOCK_M": min(power_of_two(second_width), _MAX_BLOCK_M),
    }


def score_candidates_gpu(
    rows: Tensor,
    offsets: Tensor,
    x_table: Tensor,
    e_table: Tensor,
    table_scales: list[Tensor],
    p: Tensor,
    q: Tensor | None,
    dot_weights: Tensor,
    features: Tensor | None,
    crossed: Tensor | None,
    weights: list[Tensor],
    scales: list[Tensor],
    num_tasks: int,
) -> Tensor:
    """See `serving.kernels.candidates.ops.score_candidates`; the values of `rows` and `offsets` aren't looked at.

    Raises:
        ValueError: if a shape or a stride is wrong.
        TypeError: if a dtype is wrong, int8 linears among them: they are the CPU's.
    """
    if scales or any(weight.dtype == torch.int8 for weight in weights):
        raise TypeError("linear weights are int8; on a GPU they must be torch.float32 (--linears float32)")
    p, q = _profile(p, q, x_table, e_table, dot_weights)
    of_features = features is not None
    layers = weights[of_features + (crossed is not None) :]
    if len(layers) < 2 or len(layers) % 2:
        raise ValueError(
            f"there are {len(weights)} weights; they must be one for features, one for crossed candidates, and two for "
            "each layer"
        )
    _check(rows, offsets, x_table, e_table, table_scales, p, q, dot_weights, features, crossed, weights)
    if layers[-1].numel() != num_tasks:
        raise ValueError(f"the last layer has {layers[-1].numel()} outputs; there are {num_tasks} tasks")
    (C,), (B, K, E), (_, H) = rows.shape, q.shape, x_table.shape
    weight, bias, *rest = layers
    M = bias.numel()
    blocks = block_sizes(K, M)
    has_head = len(rest) == 2 and blocks["BLOCK_M"] >= M and num_tasks <= PANEL
    head, head_bias = rest if has_head else (weight, bias)
    out = p.new_empty(C, num_tasks if has_head else M)
    x_scale, e_scale = table_scales or (p, p)  # where nothing is read, any pointer does
    if C:
        grid = (triton.cdiv(C, blocks["BLOCK_C"]), triton.cdiv(M, blocks["BLOCK_M"]))
        launch: Any = score_kernel[grid]  # its type doesn't know the launcher's own arguments
        launch(
            rows, offsets, x_table, e_table, x_scale, e_scale, p, q, dot_weights,
            p if features is None else features, weights[0],
            p if crossed is None else crossed, weights[int(of_features)],
            weight, bias, head, head_bias, out, C, B, H, E, K,
            0 if features is None else features.shape[1], 0 if crossed is None else crossed.shape[1],
            M, num_tasks, bool(table_scales), has_head, bool(rest), PANEL,
            **blocks, **LAUNCH,
        )  # fmt: skip
    return out if has_head else _remaining_layers(out, rest)


def _profile(
    p: Tensor, q: Tensor | None, x_table: Tensor, e_table: Tensor, dot_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Both, contiguous, also where p's rows hold q behind it."""
    if q is None:
        H, of_dots = x_table.shape[1], (dot_weights.shape[0], e_table.shape[1])
        if p.dim() != 2 or p.shape[1] != H + math.prod(of_dots):
            raise ValueError(
                f"p has shape {list(p.shape)} and there is no q; it must be [B, {H + math.prod(of_dots)}]"
            )
        p, q = p[:, :H], p[:, H:].unflatten(1, of_dots)
    return p.contiguous(), q.contiguous()


def _remaining_layers(hidden: Tensor, layers: list[Tensor]) -> Tensor:
    """An MLP's layers after the second, unpacked for cuBLAS at every call: they are small."""
    for at in range(0, len(layers), 2):
        packed, bias = layers[at : at + 2]
        hidden = torch.addmm(bias, hidden, unpack(packed, bias.numel()).t())
        if at + 2 < len(layers):
            hidden = torch.relu_(hidden)
    return hidden


def _check(
    rows: Tensor,
    offsets: Tensor,
    x_table: Tensor,
    e_table: Tensor,
    table_scales: list[Tensor],
    p: Tensor,
    q: Tensor,
    dot_weights: Tensor,
    features: Tensor | None,
    crossed: Tensor | None,
    weights: list[Tensor],
) -> None:
    if q.dim() != 3 or x_table.dim() != 2 or len(table_scales) not in (0, 2):
        raise ValueError(
            f"q and x_table have shapes {list(q.shape)}, {list(x_table.shape)}, table_scales {len(table_scales)} "
            "tensors; they must be [B, K, E], [I, H], and 2 or for float32 tables none"
        )
    C, (B, K, E), (num_items, H), device = rows.numel(), q.shape, x_table.shape, q.device
    check_operand("rows", rows, (C,), device, (torch.int64,))
    check_operand("offsets", offsets, (B + 1,), device, INDEX)
    of_table = (torch.int8,) if table_scales else FLOAT
    check_operand("x_table", x_table, (num_items, H), device, of_table)
    check_operand("e_table", e_table, (num_items, E), device, of_table)
    for scale in table_scales:
        check_operand("table_scales", scale, (num_items,), device)
    check_operand("p", p, (B, H), device)
    check_operand("q", q, (B, K, E), device)
    check_operand("dot_weights", dot_weights, (K, H), device)
    layers = weights
    for name, x in {"features": features, "crossed": crossed}.items():
        if x is not None:
            packed, *layers = layers
            check_operand(name, x, (C, x.shape[-1]), device)
            check_operand(f"weights of {name}", packed, (-(-H // PANEL), x.shape[-1], PANEL), device)
    width = H
    for packed, bias in zip(layers[::2], layers[1::2], strict=True):
        check_operand("bias", bias, (bias.numel(),), device)
        shape = (-(-bias.numel() // PANEL), width, PANEL)
        check_operand("packed weights", packed, shape, device)
        width = bias.numel()
