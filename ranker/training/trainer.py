"""Optimizer steps of co-training over all ranks, and the state a checkpoint needs.

Shapes: P parts of the loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from foundation.objectives.heads import Heads
from ranker.evaluation.streaming import WindowedMetrics
from ranker.model import Ranker, RankerInputs
from ranker.training.freezing import freeze, keep_frozen_still
from ranker.training.losses import LossConfig, LossSums, RankerWithLoss, global_loss
from ranker.training.optim import Optimizers, RankerOptimConfig
from ranker.training.sharding import shard, unsharded_state
from ranker.training.table_plan import ShardingConfig
from ranker.training.targets import Targets

_PREFIX = "ranker."


class RankerTrainer:
    """Trains a ranker that is spread over the ranks; a step's randomness follows from (seed, step, rank).

    Args:
        ranker: equal on every rank; its modules are replaced by sharded ones.
        optim_config: how, and what isn't trained.
        loss_config: what for.
        heads: of the release, trained along.
        num_steps: of the whole run, for the schedule.
        seed: of dropout.
        sharding_config: how the embedding tables are spread; None for the planner's choice.

    Attributes:
        loss_names: `[P]`, parts of the loss as `step` returns them.
        windowed: metrics of each task and mode over the newest steps.
    """

    def __init__(
        self,
        ranker: Ranker,
        optim_config: RankerOptimConfig,
        loss_config: LossConfig,
        heads: Heads | None,
        num_steps: int,
        seed: int,
        sharding_config: ShardingConfig | None = None,
    ) -> None:
        self.optim = optim_config
        self.num_steps = num_steps
        self.seed = seed
        self._ranker = ranker
        freeze(ranker, optim_config.freeze, optim_config.frozen_layers)
        model = RankerWithLoss(ranker, loss_config, heads)
        self.loss_names = model.names
        self.windowed = WindowedMetrics(model.names[: model.num_scores])
        self._weights = torch.tensor(model.weights, dtype=torch.float64)
        self._model = shard(model, optim_config.sparse_learning_rate, sharding_config)
        self._optimizers = Optimizers(optim_config, self._model)

    def step(self, step: int, inputs: RankerInputs, targets: Targets) -> Tensor:
        """Takes optimizer step `step` (from 0) on this rank's share of a batch; every rank must.

        Returns:
            `[P]` float64: mean of each part of the loss over all ranks, before the update.
        """
        rng = np.random.default_rng([self.seed, step, dist.get_rank()])
        torch.manual_seed(int(rng.integers(1 << 63)))
        self._model.train()
        keep_frozen_still(self._ranker)
        self._optimizers.prepare(step, self.num_steps)
        found: LossSums = self._model(inputs, targets)
        loss = global_loss(found, self._weights)
        loss.to_backpropagate.backward()
        self._optimizers.step()
        assert found.logits is not None
        modes = found.logits.shape[1] // targets.labels.shape[1]
        self.windowed.update(found.logits, targets.labels.repeat(1, modes), targets.mask.repeat(1, modes))
        return loss.means

    def total(self, means: Tensor) -> float:
        """What is minimised: the weighted sum of a step's mean losses."""
        return float(means @ self._weights)

    def state(self) -> dict[str, Any]:
        """Weights and optimizer state for `foundation.checkpoint`, read back in place: they are live."""
        return {"model": self._model.state_dict(), "optimizer": self._optimizers.state()}

    def ranker_state(self) -> dict[str, Tensor] | None:
        """The ranker's unsharded `state_dict` on rank 0, None on the others; every rank must call it."""
        state = unsharded_state(self._model)
        if state is None:
            return None
        return {
            name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)
        }
