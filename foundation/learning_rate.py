"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule: a linear warm-up, then half a cosine down to zero.

    Attributes:
        learning_rate: at its peak.
        weight_decay: of AdamW, on all weights (HSTU's recipe: none).
        warmup_steps: optimizer steps until the peak.
        clip_norm: gradients are scaled down to this norm where they exceed it.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    warmup_steps: int = 100
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be above 0")


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of optimizer step `step` (from 0) out of `num_steps`.

    A run shorter than twice its warm-up warms up over its first half.
    """
    warmup = min(config.warmup_steps, num_steps // 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
