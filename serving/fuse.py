"""The explicit swap of reference layers for fused ones, at export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.arches.interaction import DotProducts, FirstLayer
from serving.kernels.interaction import ops


class FusedFirstLayer(nn.Module):
    """`ranker.arches.interaction.FirstLayer` by the fused operator; it has no parameters either."""

    def forward(self, x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        """See `ranker.arches.interaction.interaction_first_layer`."""
        return ops.interaction_first_layer(x, e, p, q, w, offsets)


class FusedDotProducts(nn.Module):
    """`ranker.arches.interaction.DotProducts` by the same operator: `d = relu(d) - relu(-d)`, which is exact."""

    def forward(self, e: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
        """See `ranker.arches.interaction.dot_products`."""
        num_requests, num_dots = q.shape[:2]
        identity = torch.eye(num_dots, dtype=q.dtype, device=q.device)
        nothing_C, nothing_B = e.new_zeros(e.shape[0], 2 * num_dots), q.new_zeros(num_requests, 2 * num_dots)
        both_signs = torch.cat((identity, -identity), dim=1)
        sides = ops.interaction_first_layer(nothing_C, e, nothing_B, q, both_signs, offsets)
        return sides[:, :num_dots] - sides[:, num_dots:]


FUSED: dict[type[nn.Module], type[nn.Module]] = {FirstLayer: FusedFirstLayer, DotProducts: FusedDotProducts}


def fuse(module: nn.Module) -> list[str]:
    """Swap every reference layer inside `module` in place; parameters keep their names.

    Returns:
        the names of the swapped submodules.
    """
    swapped = {name: FUSED[type(child)] for name, child in module.named_modules() if type(child) in FUSED}
    for name, fused in swapped.items():
        module.set_submodule(name, fused())
    return list(swapped)
