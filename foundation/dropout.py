"""Dropout whose random bits cost an eighth: one random byte an element, eight from each number drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 256


class Dropout(nn.Module):
    """Zeroes elements at random while training and scales the rest so that the mean stays.

    torch's own draws one number for each element, one after the other on a CPU: 7 % of a training step. A
    random byte decides instead, so the share is rounded to the nearest 1 / 256; the scale is of the rounded share.

    Args:
        share: of the elements to drop, in [0, 1).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        # A share near 1 must not round to all of them: nothing would be left to scale.
        self.num_dropped = min(round(share * LEVELS), LEVELS - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        if not self.training or self.num_dropped == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        words.random_(-(1 << 63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.num_dropped
        return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - self.num_dropped))


def set_dropout(model: nn.Module, share: float) -> None:
    """Changes every dropout of a model, ours and torch's, to `share` in [0, 1)."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.num_dropped = Dropout(share).num_dropped
        elif isinstance(module, nn.Dropout):
            module.p = share
