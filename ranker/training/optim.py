"""Optimizers of co-training: AdamW on dense weights, slower on the decoder; row-wise Adagrad on tables.

The tables' update runs inside the backward pass (fused), so theirs is a config rather than an optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from foundation.learning_rate import OptimConfig, learning_rate
from ranker.training.sharding import table_names

FOUNDATION = "profile_tower.foundation."
"""The part of a parameter's name that says it belongs to the imported foundation model."""


@dataclass(frozen=True)
class RankerOptimConfig:
    """Learning rates at their peak, and their schedule: a linear warm-up, then half a cosine down to zero.

    Attributes:
        learning_rate: of dense weights.
        decoder_share: the imported foundation model learns at so much of that; 1/10 in PinFM
            (arXiv 2507.12704).
        sparse_learning_rate: of embedding tables, whose Adagrad wants a larger one.
        weight_decay: of AdamW, on matrices; none on biases, norms and the decoder's embeddings.
        warmup_steps: optimizer steps until the peak.
        clip_norm: dense gradients are scaled down to this norm where they exceed it.
    """

    learning_rate: float = 3e-3
    decoder_share: float = 0.1
    sparse_learning_rate: float = 0.05
    weight_decay: float = 0.0
    warmup_steps: int = 50
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "sparse_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("decoder_share", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 0")

    def scale(self, step: int, num_steps: int) -> float:
        """What every rate is multiplied by at optimizer step `step` (from 0) of `num_steps`."""
        return learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=self.warmup_steps), step, num_steps)


class Optimizers:
    """All optimizers of a sharded model, stepped together.

    Args:
        config: rates.
        model: the sharded model.
    """

    def __init__(self, config: RankerOptimConfig, model: DistributedModelParallel) -> None:
        self.config = config
        # What it steps is the rate alone: FBGEMM updates tables in the backward pass.
        self._tables = model.fused_optimizer
        tables = table_names(model)
        self._dense = {name: each for name, each in model.named_parameters() if name not in tables}
        self._adam = torch.optim.AdamW(_groups(config, self._dense), lr=config.learning_rate, fused=True)

    def prepare(self, step: int, num_steps: int) -> None:
        """Sets the rates of a step and clears gradients, before the backward pass (which updates tables)."""
        scale = self.config.scale(step, num_steps)
        for group in self._adam.param_groups:
            group["lr"] = group["peak"] * scale
        for group in self._tables.param_groups:
            cast(dict[str, Any], group)["lr"] = self.config.sparse_learning_rate * scale
        self._tables.step()
        self._adam.zero_grad(set_to_none=False)

    def step(self) -> None:
        """Updates the dense weights, after the backward pass."""
        nn.utils.clip_grad_norm_(self._dense.values(), self.config.clip_norm)
        self._adam.step()

    def state(self) -> dict[str, Any]:
        """State for `foundation.checkpoint`, moments by parameter name; its tensors are the live ones."""
        for parameter in self._dense.values():
            if parameter not in self._adam.state:
                self._adam.state[parameter] = _fresh_moments(parameter)
        dense = {name: dict(self._adam.state[parameter]) for name, parameter in self._dense.items()}
        return {"dense": dense, "tables": self._tables.state_dict()["state"]}


def _groups(config: RankerOptimConfig, parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decays = parameter.dim() > 1 and "embedding" not in name
        groups.setdefault((FOUNDATION in name, decays), []).append(parameter)
    return [
        {
            "params": members,
            "peak": config.learning_rate * (config.decoder_share if is_foundation else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (is_foundation, decays), members in groups.items()
    ]


def _fresh_moments(parameter: Tensor) -> dict[str, Tensor]:
    """What AdamW makes at its first step, made earlier so that a checkpoint has somewhere to be read into."""
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
