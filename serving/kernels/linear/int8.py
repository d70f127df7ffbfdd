"""int8 weights, and the specification of a linear layer in int8.

Shapes: R rows, K inputs, N outputs. For a row x and weights `[N, K]`

    row scale r = max|x| / 127,         q = round(x / r), half to even, in [-127, 127]
    column scale s_n = max|w_n| / 63,   v_n = round(w_n / s_n), in [-63, 63]
    y_n = (Σ_k q_k v_nk) r s_n + b_n

Seven bits for weights, so that a pair of products fits 16 bits on processors that add those first: one format, and the
same integer sums, for all. A row is quantised by itself: its outputs depend on no other row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.kernels.linear.panels import PANEL

WEIGHT_MAX, ROW_MAX = 63, 127
_GROUP = 4
_SMALLEST = 2.0**-100


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise and pack weights.

    Args:
        weight: `[N, K]` float32.

    Returns:
        `[ceil(N / 16), ceil(K / 4), 16, 4]` int8, padded with zeros; and `[2, N padded to 16]` float32: the scale of
        each output, then 128 times the sum of its int8 weights, since kernels store a row as `q + 128`.

    Raises:
        ValueError: if a weight isn't finite.
    """
    if not weight.isfinite().all():
        raise ValueError("weight has a NaN or an infinity; int8 has neither")
    weight = F.pad(weight.detach(), (0, -weight.shape[1] % _GROUP, 0, -weight.shape[0] % PANEL))
    scale_N = weight.abs().amax(1) / WEIGHT_MAX
    quantised = torch.where(scale_N[:, None] > 0, weight / scale_N[:, None], 0.0).round().to(torch.int8)
    packed = quantised.unflatten(0, (-1, PANEL)).unflatten(2, (-1, _GROUP)).transpose(1, 2).contiguous()
    return packed, torch.stack((scale_N, 128.0 * quantised.sum(1)))


def unpack_int8(packed: Tensor, num_outputs: int, num_inputs: int) -> Tensor:
    """The int8 weights `[N, K]` of `pack_int8`."""
    return packed.transpose(1, 2).flatten(2).flatten(0, 1)[:num_outputs, :num_inputs].contiguous()


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[R, K]` float32 to whole numbers in [-127, 127], `[R, K]` float32, and their scales `[R]`.

    A row of zeros, or one whose largest magnitude is below 2^-100, has scale 0; one with a NaN or an infinity has
    scale NaN, and so NaN outputs.
    """
    largest_R = x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0])
    usable_R = largest_R.isfinite() & (largest_R >= _SMALLEST)
    # Not ROW_MAX / largest: that is the product with a reciprocal, which is rounded twice.
    inverse_R = torch.where(usable_R, torch.full_like(largest_R, ROW_MAX) / largest_R, 0.0)
    rows = torch.where(usable_R[:, None], (x * inverse_R[:, None]).round(), 0.0)
    nothing_R = torch.where(largest_R < _SMALLEST, 0.0, torch.nan)
    return rows, torch.where(usable_R, largest_R / ROW_MAX, nothing_R)


def quantised_linear(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, num_outputs: int
) -> Tensor:
    """What `marquee::linear` computes with int8 weights, by plain operators; the sums are exact.

    Args:
        x: `[..., K]` float32.
        packed, scales: of `pack_int8`.
        bias: `[N]` or None.
        num_outputs: N.

    Returns:
        `[..., N]`.
    """
    rows = x.reshape(-1, x.shape[-1])
    quantised, scale_R = quantise_rows(rows)
    weight = unpack_int8(packed, num_outputs, x.shape[-1])
    # float64 holds every sum exactly; int64 products would have no BLAS.
    sums = (quantised.to(torch.float64) @ weight.to(torch.float64).T).to(torch.float32)
    y = sums * scale_R[:, None] * scales[0, :num_outputs]
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], num_outputs)
