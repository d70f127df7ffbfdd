"""`marquee::linear`: registration, and the function that calls it.

Shapes: R rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving.kernels.extension import load_extension
from serving.kernels.linear.panels import unpack

load_extension()


def linear(x: Tensor, packed: Tensor, scales: Tensor | None, bias: Tensor | None, num_outputs: int) -> Tensor:
    """`x Wᵀ + b` with packed weights; those of `pack_int8` are multiplied by rows that are quantised one by one.

    It is the other operators' matrix product by itself. For inference: backward through it raises.

    Args:
        x: `[R, K]` float32, contiguous, as every operand.
        packed: of `panels.pack`, or of `int8.pack_int8`.
        scales: of `int8.pack_int8`; None for float32 weights.
        bias: `[N]` or None.
        num_outputs: N.

    Returns:
        `[R, N]`; NaN for a row of `x` with a NaN or an infinity where weights are int8.

    Raises:
        ValueError: if a shape or a stride is wrong.
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.linear(x, packed, scales, bias, num_outputs)


def _fake(x: Tensor, packed: Tensor, scales: Tensor | None, bias: Tensor | None, num_outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], num_outputs)


def _cuda(x: Tensor, packed: Tensor, scales: Tensor | None, bias: Tensor | None, num_outputs: int) -> Tensor:
    """By cuBLAS, the weights unpacked at every call."""
    if scales is not None:
        raise TypeError("linear weights are int8; on a GPU they must be torch.float32 (--linears float32)")
    return torch.nn.functional.linear(x, unpack(packed, num_outputs), bias)


torch.library.register_fake("marquee::linear", _fake)
torch.library.register_kernel("marquee::linear", "cuda", _cuda)
