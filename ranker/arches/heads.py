"""Heads: from what the tasks share to one logit each.

Shapes: C candidates over the batch, H width of what they share, N tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ranker.arches.mlp import mlp


class TaskHeads(nn.Module):
    """An MLP for each task over what all tasks share (the shared bottom of arXiv 1706.05098), a logit each.

    Args:
        width: H.
        hidden_widths: of each task's own layers; at least one.
        num_tasks: N.
    """

    def __init__(self, width: int, hidden_widths: tuple[int, ...], num_tasks: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(*mlp((width, *hidden_widths)), nn.Linear(hidden_widths[-1], 1))
            for _ in range(num_tasks)
        )

    def forward(self, shared: Tensor) -> Tensor:
        """`[C, H]` to logits `[C, N]`."""
        return torch.cat([tower(shared) for tower in self.towers], dim=1)


def task_heads(width: int, hidden_widths: tuple[int, ...], num_tasks: int) -> nn.Module:
    """One linear layer `[C, H]` to `[C, N]`, or with `hidden_widths` an MLP for each task."""
    return TaskHeads(width, hidden_widths, num_tasks) if hidden_widths else nn.Linear(width, num_tasks)
