"""Explicit feature crosses: DCN-v2 (arXiv 2008.13535), low-rank, over what a candidate is to its request.

Shapes: C candidates over the batch, K dot products, F width of the candidate's features in its request,
D_candidate candidate vector width, W width of what is crossed, r rank, H width that comes out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet


class CrossSizes(NamedTuple):
    """Sizes of a cross network."""

    num_layers: int
    """At least 1; layer l makes products of l + 1 features."""
    candidate_width: int
    """Of what depends on the item alone, projected."""
    rank: int
    """r; cut to W."""


class CrossNetwork(nn.Module):
    """`x_0 = [P c ; f ; dot products]`, `x_{l+1} = x_0 ⊙ (U_l V_l x_l + b_l) + x_l` (section 4), projected to H.

    It differs from the paper's by its start: U is zero, so that the layers begin as the identity. Dot products
    come in at the scale of logits; multiplied with each other from the first step they would blow up. The profile
    has a part in it through the dot products alone, so nothing of its width is made per candidate.

    Args:
        sizes: of the network.
        candidate_width: D_candidate.
        other_width: F + K.
        out_width: H.
    """

    def __init__(self, sizes: CrossSizes, candidate_width: int, other_width: int, out_width: int) -> None:
        super().__init__()
        width = sizes.candidate_width + other_width
        self.candidate_projection = nn.Linear(candidate_width, sizes.candidate_width)
        self.layers = LowRankCrossNet(width, sizes.num_layers, min(sizes.rank, width))
        self.projection = nn.Linear(width, out_width, bias=False)
        with torch.no_grad():
            for kernel in self.layers.W_kernels:
                kernel.zero_()

    def forward(self, candidate: Tensor, features: Tensor | None, dots_CK: Tensor) -> Tensor:
        """`[C, D_candidate]`, `[C, F]` (None where F = 0) and `[C, K]` to `[C, H]`."""
        parts = (self.candidate_projection(candidate), features, dots_CK)
        return self.projection(self.layers(torch.cat([part for part in parts if part is not None], dim=1)))
