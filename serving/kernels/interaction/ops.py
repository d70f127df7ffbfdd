"""`marquee::interaction_first_layer`: registration, and the function that calls it.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving.kernels.extension import load_extension

load_extension()

_NAME = "marquee::interaction_first_layer"


def interaction_first_layer(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """`relu(x_c + p_r + Σ_k (e_c · q_rk) w_k)` for every candidate `c` of request `r`, in one pass.

    The profile's share is read in place for each candidate of its request, so nothing of size `[C, K, E]`
    and no second `[C, H]` exists (IKBO's broadcast inside the kernel; ROO, arXiv 2508.05640). For inference:
    backward through it raises.

    Args:
        x: `[C, H]` float32, contiguous, as every operand: the candidate's share of the layer, bias included.
        e: `[C, E]` the candidate's side of the dot products.
        p: `[B, H]` the profile's share of the layer.
        q: `[B, K, E]` the profile's side of the dot products.
        w: `[K, H]` the layer's weights of the dot products.
        offsets: `[B + 1]` int64 or int32: request `b` owns candidates `offsets[b]` to `offsets[b + 1]`.

    Returns:
        `[C, H]`.

    Raises:
        ValueError: if a shape, a stride or an offset is wrong (on a GPU the offsets' values aren't looked at).
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.interaction_first_layer(x, e, p, q, w, offsets)


def _fake(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    return torch.empty_like(x)


def _cuda(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    # Imported here because the kernel language is installed on development and GPU machines only.
    from serving.kernels.interaction.gpu import first_layer_gpu  # noqa: PLC0415

    return first_layer_gpu(x, e, p, q, w, offsets)


torch.library.register_fake(_NAME, _fake)
torch.library.register_kernel(_NAME, "cuda", _cuda)
