"""The explicit swap of reference layers for fused ones, at export."""

from __future__ import annotations

from torch import Tensor, nn

from ranker.arches.interaction import FirstLayer
from serving.kernels.interaction import ops


class FusedFirstLayer(nn.Module):
    """`ranker.arches.interaction.FirstLayer` by the fused operator; it has no parameters either."""

    def forward(self, x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        """See `ranker.arches.interaction.interaction_first_layer`."""
        return ops.interaction_first_layer(x, e, p, q, w, offsets)


def fuse(module: nn.Module) -> list[str]:
    """Swap every reference layer inside `module` in place; parameters keep their names.

    Returns:
        the names of the swapped submodules.
    """
    swapped = [name for name, child in module.named_modules() if isinstance(child, FirstLayer)]
    for name in swapped:
        module.set_submodule(name, FusedFirstLayer())
    return swapped
