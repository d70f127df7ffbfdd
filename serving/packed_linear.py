"""A linear layer by `marquee::linear`: packed once, read by all threads even for a single row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.kernels.linear.ops import linear
from serving.kernels.linear.panels import pack


class PackedLinear(nn.Module):
    """Several linear layers without biases over the same input as one.

    A row's outputs are the same to the bit whatever else is in the batch, and with any number of threads.

    Args:
        layers: that read the same input.
    """

    packed: Tensor

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__()
        assert all(layer.bias is None for layer in layers)
        self.register_buffer("packed", pack(torch.cat([layer.weight.detach() for layer in layers])))
        self.num_outputs = sum(layer.out_features for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[R, K]` to `[R, N]`, the layers' outputs beside each other."""
        return linear(x, self.packed, None, None, self.num_outputs)
