"""Layer-wise supervision: every layer's output learns the next item, so that a shallower decoder can be served."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_wise_loss(losses: Sequence[Tensor], layer_weight: float) -> Tensor:
    """loss of the last layer + layer_weight * mean loss of the earlier ones.

    Args:
        losses: of each layer's hidden states, first to last, at least one.
        layer_weight: at least 0.
    """
    *earlier, last = losses
    if not earlier or not layer_weight:
        return last
    return last + layer_weight * torch.stack(earlier).mean()
