"""Optimizers of co-training: AdamW on dense weights, slower on the foundation model; row-wise Adagrad on tables.

The tables' update runs inside the backward pass (fused), so theirs is a config rather than an optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from foundation.learning_rate import OptimConfig, learning_rate
from ranker.training.freezing import FreezePlan
from ranker.training.sharding import table_names

OF_RELEASE = ("ranker.profile_tower.foundation.", "heads.")
"""How the names of the parameters begin that come from the imported release."""


@dataclass(frozen=True)
class RankerOptimConfig:
    """Learning rates at their peak, and their schedule: a linear warm-up, then half a cosine down to zero.

    Attributes:
        learning_rate: of dense weights.
        decoder_share: the imported foundation model learns at so much of that; 1/10 in PinFM
            (arXiv 2507.12704).
        decoder_warmup_steps: its own warm-up; longer, so that a ranker that knows nothing yet does it no harm.
        freeze: what of it isn't trained at all: `nothing`, `embeddings` (of facets and items), `lower_layers` (the
            embeddings and the first `frozen_layers` blocks) or `all`.
        frozen_layers: of `lower_layers`, at least 1.
        sparse_learning_rate: of embedding tables, whose Adagrad wants a larger one.
        weight_decay: of AdamW, on matrices; none on biases, norms and the decoder's embeddings.
        warmup_steps: optimizer steps until the peak, of all but the foundation model.
        clip_norm: dense gradients are scaled down to this norm where they exceed it.
    """

    learning_rate: float = 3e-3
    decoder_share: float = 0.1
    decoder_warmup_steps: int = 100
    freeze: FreezePlan = "nothing"
    frozen_layers: int = 0
    sparse_learning_rate: float = 0.05
    weight_decay: float = 0.0
    warmup_steps: int = 50
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "sparse_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("decoder_share", "decoder_warmup_steps", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 0")
        if self.freeze not in get_args(FreezePlan):
            plans = ", ".join(get_args(FreezePlan))
            raise ValueError(f"optim.freeze is {self.freeze!r}; it must be one of {plans}")
        if (self.frozen_layers > 0) != (self.freeze == "lower_layers") or self.frozen_layers < 0:
            raise ValueError(
                f"optim.frozen_layers is {self.frozen_layers} with optim.freeze {self.freeze!r}; it must be at least 1 "
                "with 'lower_layers', and is for nothing else"
            )

    def rates(self, step: int, num_steps: int) -> dict[str, float]:
        """Rates at optimizer step `step` (from 0) of `num_steps`: of `dense` weights, `decoder` and `tables`."""
        peaks = {
            "dense": (self.learning_rate, self.warmup_steps),
            "decoder": (self.learning_rate * self.decoder_share, self.decoder_warmup_steps),
            "tables": (self.sparse_learning_rate, self.warmup_steps),
        }
        return {
            name: peak
            * learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=warmup_steps), step, num_steps)
            for name, (peak, warmup_steps) in peaks.items()
        }


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
        self._dense = {
            name: each for name, each in model.named_parameters() if name not in tables and each.requires_grad
        }
        self._adam = torch.optim.AdamW(_groups(config, self._dense), lr=config.learning_rate, fused=True)

    def prepare(self, step: int, num_steps: int) -> None:
        """Sets the rates of a step and clears gradients, before the backward pass (which updates tables)."""
        rates = self.config.rates(step, num_steps)
        for group in self._adam.param_groups:
            group["lr"] = rates[group["rate"]]
        for group in self._tables.param_groups:
            cast(dict[str, Any], group)["lr"] = rates["tables"]
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
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decays = parameter.dim() > 1 and "embedding" not in name
        rate = "decoder" if name.startswith(OF_RELEASE) else "dense"
        groups.setdefault((rate, decays), []).append(parameter)
    return [
        {"params": members, "rate": rate, "weight_decay": config.weight_decay if decays else 0.0}
        for (rate, decays), members in groups.items()
    ]


def _fresh_moments(parameter: Tensor) -> dict[str, Tensor]:
    """What AdamW makes at its first step, made earlier so that a checkpoint has somewhere to be read into."""
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
