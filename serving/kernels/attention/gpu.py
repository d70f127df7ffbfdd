"""Attention of new tokens over stored and new keys and values, ragged, as a Triton kernel.

Compiled for sm_80 and sm_90 and compared with the reference under the interpreter; never run on a GPU, never timed.

Shapes: Q queries, T new tokens, S stored tokens, all packed; B sequences, H heads, K head width.

    stored   a0 a1 a2 | b0        new   a3 a4 | b1 b2 b3

    continued    a3 sees a0 a1 a2 a3, a4 that and itself: queries are of a sequence's last new tokens, or of all
    branches     a3 and a4 both sit at position 3: each sees a0 a1 a2 and itself

A program has `BLOCK_Q` queries, of whatever sequences, and one head. It walks the sequences that its queries are of,
and of each one the keys in sight, which all its queries read in place. Softmax is a running maximum, total and
weighted sum (arXiv 1805.02867); a branch is the first to enter its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from serving.kernels.ragged.gpu import owner, power_of_two

LAUNCH = {"num_warps": 8, "num_stages": 2, "maxnreg": 128}  # without the limit, ptxas spills to save more
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _over_keys(
    running,
    queries,
    positions,
    low,
    high,
    keys,
    WINDOW: tl.constexpr,
    NUM_PREFIX: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`running` after a run of a sequence's keys.

    Args:
        running: maximum `[BLOCK_Q]`, total `[BLOCK_Q]` and weighted sum `[BLOCK_Q, BLOCK_K]` so far.
        queries: `[BLOCK_Q, BLOCK_K]`, scaled.
        positions: `[BLOCK_Q]` of the queries in their sequence; -1 for queries of other sequences, which see nothing.
        low: the least of them, -1 aside.
        high: the greatest.
        keys: where the run's keys and values start, the strides of their rows, how many there are, and the position
            of the first.
    """
    maximum, total, weighted = running
    k_ptr, v_ptr, k_stride, v_stride, num_keys, base = keys
    k = tl.arange(0, BLOCK_K)
    # Two spans of keys: what is left of the prefix, and from the first key that any query's window holds.
    stop = tl.minimum(num_keys, high - base + 1)
    start = stop * 0
    prefix_stop = stop * 0
    if WINDOW > 0:
        start = tl.minimum(tl.maximum(low - (WINDOW - 1) - base, 0), tl.maximum(stop, 0))
        prefix_stop = tl.minimum(tl.maximum(NUM_PREFIX - base, 0), start)
    prefix_chunks = tl.cdiv(prefix_stop, BLOCK_J)
    chunks = prefix_chunks + tl.cdiv(tl.maximum(stop - start, 0), BLOCK_J)
    for chunk in range(chunks):
        is_prefix = chunk < prefix_chunks
        begin = tl.where(is_prefix, chunk * BLOCK_J, start + (chunk - prefix_chunks) * BLOCK_J)
        j = begin + tl.arange(0, BLOCK_J)
        is_key = j < tl.where(is_prefix, prefix_stop, stop)
        in_JK = is_key[:, None] & (k < HEAD_WIDTH)[None, :]
        k_JK = tl.load(k_ptr + j[:, None] * k_stride + k[None, :], mask=in_JK, other=0.0)
        distance = positions[:, None] - (base + j)[None, :]
        visible = is_key[None, :] & (distance >= 0)
        if WINDOW > 0:
            visible = visible & ((distance < WINDOW) | (base + j < NUM_PREFIX)[None, :])
        scores = tl.dot(queries, tl.trans(k_JK), input_precision="ieee")
        scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        shrink = tl.exp2(maximum - new_maximum)
        scores = tl.exp2(scores - new_maximum[:, None])
        total = total * shrink + tl.sum(scores, axis=1)
        v_JK = tl.load(v_ptr + j[:, None] * v_stride + k[None, :], mask=in_JK, other=0.0)
        weighted = tl.dot(scores, v_JK, weighted * shrink[:, None], input_precision="ieee")
        maximum = new_maximum
    return maximum, total, weighted


@triton.jit(
    do_not_specialize=["Q", "B"]
)  # one program for all batches, the one that was looked at for spills
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    stored_k_ptr,
    stored_v_ptr,
    out_ptr,
    query_offsets_ptr,
    offsets_ptr,
    stored_offsets_ptr,
    Q,
    B,
    scale,
    q_stride: tl.constexpr,
    k_stride: tl.constexpr,
    v_stride: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    HAS_STORED: tl.constexpr,
    BRANCHES: tl.constexpr,
    WINDOW: tl.constexpr,
    NUM_PREFIX: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program attends for `BLOCK_Q` queries of one head."""
    tile = tl.program_id(0).to(tl.int64) * BLOCK_Q
    head = tl.program_id(1)
    lane = tl.arange(0, BLOCK_Q)
    i = tile + lane
    k = tl.arange(0, BLOCK_K)
    in_QK = (i < Q)[:, None] & (k < K)[None, :]
    columns = (head * K + k)[None, :]
    sequences = owner(query_offsets_ptr, tl.minimum(i, Q - 1), B, BLOCK_Q)

    q_QK = tl.load(q_ptr + i[:, None] * q_stride + columns, mask=in_QK, other=0.0) * scale * LOG2_E
    # Finite, so that a query of whose sequence nothing was seen yet is not inf - inf.
    maximum = tl.full([BLOCK_Q], -1e38, dtype=tl.float32)
    total = tl.zeros([BLOCK_Q], dtype=tl.float32)
    weighted = tl.zeros([BLOCK_Q, BLOCK_K], dtype=tl.float32)
    if BRANCHES:
        own_QK = tl.load(k_ptr + i[:, None] * k_stride + columns, mask=in_QK, other=0.0)
        maximum = tl.sum(q_QK * own_QK, axis=1)
        total += 1.0
        weighted = tl.load(v_ptr + i[:, None] * v_stride + columns, mask=in_QK, other=0.0)
    running = (maximum, total, weighted)

    for b in range(tl.min(sequences), tl.max(sequences) + 1):
        query_begin = tl.load(query_offsets_ptr + b).to(tl.int64)
        query_end = tl.load(query_offsets_ptr + b + 1).to(tl.int64)
        begin = tl.load(offsets_ptr + b).to(tl.int64)
        num_new = (tl.load(offsets_ptr + b + 1).to(tl.int64) - begin).to(tl.int32)
        stored_begin = begin * 0
        num_stored = num_new * 0
        if HAS_STORED:
            stored_begin = tl.load(stored_offsets_ptr + b).to(tl.int64)
            num_stored = (tl.load(stored_offsets_ptr + b + 1).to(tl.int64) - stored_begin).to(tl.int32)
        if BRANCHES:
            position = num_stored + lane * 0
            low = num_stored
            high = num_stored
        else:
            first = num_stored + num_new + (tile - query_end).to(tl.int32)  # the position of lane 0
            position = first + lane
            low = first + tl.maximum(query_begin - tile, 0).to(tl.int32)
            high = first + (tl.minimum(tile + BLOCK_Q, query_end) - 1 - tile).to(tl.int32)
        positions = tl.where((i >= query_begin) & (i < query_end), position, -1)
        if query_end > query_begin:
            if HAS_STORED:
                at = stored_begin * H * K + head * K
                stored = (stored_k_ptr + at, stored_v_ptr + at, H * K, H * K, num_stored, num_stored * 0)
                running = _over_keys(
                    running, q_QK, positions, low, high, stored, WINDOW, NUM_PREFIX, K, BLOCK_J, BLOCK_K
                )
            if not BRANCHES:
                new_k_ptr = k_ptr + begin * k_stride + head * K
                new_v_ptr = v_ptr + begin * v_stride + head * K
                new = (new_k_ptr, new_v_ptr, k_stride, v_stride, num_new, num_stored)
                running = _over_keys(
                    running, q_QK, positions, low, high, new, WINDOW, NUM_PREFIX, K, BLOCK_J, BLOCK_K
                )
    maximum, total, weighted = running
    total = tl.where(i < Q, total, 1.0)
    tl.store(out_ptr + i[:, None] * (H * K) + columns, weighted / total[:, None], mask=in_QK)


def block_sizes(head_width: int) -> dict[str, int]:
    """The kernel's block sizes for head width K."""
    tile = 32 if head_width <= 64 else 16
    return {"BLOCK_Q": tile, "BLOCK_J": tile, "BLOCK_K": power_of_two(head_width)}


class Tokens(NamedTuple):
    """Packed keys and values of a batch's sequences, either new or stored."""

    keys: Tensor
    """`[T, H, K]` float32, rotated; a token's values lie beside each other."""
    values: Tensor
    """Likewise."""
    offsets: Tensor
    """`[B + 1]` int64 or int32."""


def attention_gpu(
    queries: Tensor,
    query_offsets: Tensor,
    new: Tokens,
    stored: Tokens | None,
    branches: bool = False,
    window: int = 0,
    num_prefix: int = 0,
) -> Tensor:
    """softmax(q·k / sqrt(K)) v of each query over the stored and new tokens in sight; `[Q, H, K]`.

    Args:
        queries: `[Q, H, K]` float32, of each sequence's last new tokens; as keys, its rows may be strided.
        query_offsets: `[B + 1]`; for branches there is a query for every new token.
        new: the new tokens' keys and values.
        stored: of the tokens before them, contiguous; None where nothing is stored.
        branches: each new token sits right after the stored ones, and sees them and itself.
        window: a token sees the newest so many, itself among them; 0: all.
        num_prefix: and the sequence's first so many; read where there is a window.

    Raises:
        ValueError: if a shape or a stride is wrong; offsets' values aren't looked at.
    """
    (Q, H, K), B = queries.shape, query_offsets.numel() - 1
    for name, tensor in {"queries": queries, "keys": new.keys, "values": new.values}.items():
        if tensor.shape[1:] != (H, K) or not tensor[:1].is_contiguous():
            raise ValueError(
                f"{name} have shape {list(tensor.shape)} and strides {list(tensor.stride())}; they must be "
                f"[.., {H}, {K}], each token's values beside each other"
            )
    out = torch.empty((Q, H, K), dtype=queries.dtype, device=queries.device)
    if out.numel() == 0:
        return out
    # Pointers that are never read stand in for what isn't stored.
    earlier = stored or new
    blocks = block_sizes(K)
    grid = (triton.cdiv(Q, blocks["BLOCK_Q"]), H)
    launch: Any = attention_kernel[grid]  # its type doesn't know the launcher's own arguments
    launch(
        queries, new.keys, new.values, earlier.keys, earlier.values, out,
        query_offsets, new.offsets, earlier.offsets,
        Q, B, K**-0.5, queries.stride(0), new.keys.stride(0), new.values.stride(0),
        H, K, stored is not None, branches, window, num_prefix,
        **blocks, **LAUNCH,
    )  # fmt: skip
    return out
