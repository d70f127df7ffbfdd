"""Packed weights: what a linear layer's weights become for the CPU kernels, the same for every processor.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PANEL = 16
"""Outputs that lie beside each other; kPanel in panels.h."""


def pack(weight: Tensor) -> Tensor:
    """`[N, K]` float32 to `[ceil(N / 16), K, 16]`, padded with zeros; packed once, at export."""
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def unpack(packed: Tensor, num_outputs: int) -> Tensor:
    """The inverse of `pack`: `[N, K]`."""
    return packed.transpose(1, 2).flatten(0, 1)[:num_outputs].contiguous()
