"""What the GPU kernels ask of an operand: they address memory themselves, so nothing else would notice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT = (torch.float32,)
INDEX = (torch.int64, torch.int32)


def check_operand(
    name: str,
    tensor: Tensor,
    shape: Sequence[int],
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = FLOAT,
) -> None:
    """Raise unless `tensor` is what a kernel expects.

    Raises:
        ValueError: if its shape or its device is another, or it isn't contiguous.
        TypeError: if its dtype is none of `dtypes`.
    """
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {tensor.dtype}; it must be {' or '.join(map(str, dtypes))}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {list(tensor.stride())}; it must be contiguous")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {device} with the other operands")
