"""Optimizer steps of co-training over all ranks, and the state a checkpoint needs.

Shapes: N tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ranker.model import Ranker, RankerInputs
from ranker.training.losses import LossConfig, RankerWithLoss, global_loss
from ranker.training.optim import Optimizers, RankerOptimConfig
from ranker.training.sharding import shard, unsharded_state
from ranker.training.targets import Targets

_PREFIX = "ranker."


class RankerTrainer:
    """Trains a ranker that is spread over the ranks; a step's randomness follows from (seed, step, rank).

    Args:
        ranker: equal on every rank; its modules are replaced by sharded ones.
        optim, loss: how.
        num_steps: of the whole run, for the schedule.
        seed: of dropout.
    """

    def __init__(
        self, ranker: Ranker, optim: RankerOptimConfig, loss: LossConfig, num_steps: int, seed: int
    ) -> None:
        self.optim = optim
        self.num_steps = num_steps
        self.seed = seed
        weights = [1.0] * len(ranker.tasks) + [loss.next_item_weight]
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._model = shard(RankerWithLoss(ranker), optim.sparse_learning_rate)
        self._optimizers = Optimizers(optim, self._model)

    def step(self, step: int, inputs: RankerInputs, targets: Targets) -> Tensor:
        """Takes optimizer step `step` (from 0) on this rank's share of a batch; every rank must.

        Returns:
            `[N + 1]` float64: mean loss of each task and of the next item over all ranks, before the update.
        """
        rng = np.random.default_rng([self.seed, step, dist.get_rank()])
        torch.manual_seed(int(rng.integers(1 << 63)))
        self._model.train()
        self._optimizers.prepare(step, self.num_steps)
        loss = global_loss(self._model(inputs, targets), self._weights)
        loss.to_backpropagate.backward()
        self._optimizers.step()
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
        return None if state is None else {name.removeprefix(_PREFIX): value for name, value in state.items()}
