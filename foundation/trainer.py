"""The optimizer steps of a training run, and the state a checkpoint needs.

Letters: B windows, T packed tokens, I item rows.

A step's batch is cut into parts, which the processes of the run share. Everything random in a part follows from
(seed, step, part) alone, and losses are sums: so however many processes there are, they take the same step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from foundation.distributed import all_reduce_gradients, all_reduce_sum, owned_parts
from foundation.layout import layout
from foundation.learning_rate import OptimConfig, learning_rate
from foundation.masking import hidden_items, mask_context
from foundation.model import FoundationModel
from foundation.objectives.objective import LossSums, Objective
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.training_batches import Batch, TrainingHistories
from foundation.window import span_rows


class RunPlan(NamedTuple):
    """What the steps of a run have in common."""

    histories: TrainingHistories
    """That batches are windows of."""
    num_steps: int
    """Of the whole run, for the schedule."""
    parts: int
    """Of a step, see `BatchConfig.parts`."""
    hidden_share: float
    """Of the items, hidden in each part as if never seen."""
    seed: int
    """Of dropout, hidden items, masked contexts and sampled negatives."""


class Trainer:
    """Takes optimizer steps.

    Args:
        model, objective: trained in place.
        optim: how.
        plan: of the run.

    Attributes:
        losses: means of the latest step by name, "item" the next item's, in nats; see `Objective`.
    """

    def __init__(
        self, model: FoundationModel, objective: Objective, optim: OptimConfig, plan: RunPlan
    ) -> None:
        self.model = model
        self.objective = objective
        self.optim = optim
        self.plan = plan
        self.losses: dict[str, float] = {}
        self.trained = nn.ModuleDict({"model": model})
        if objective.heads is not None:
            self.trained["heads"] = objective.heads
        self.optimizer = torch.optim.AdamW(
            self.trained.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
        )

    def step(self, step: int, tokenizer: Tokenizer, events: EventIds, batch: Batch) -> float:
        """Takes optimizer step `step` (from 0) on the windows of `batch`; every process calls it.

        Returns:
            The mean loss of the next item over the whole batch, in nats, before the update.
        """
        self.trained.train()
        parts = batch.parts(self.plan.parts)
        found = [
            self._backward(step, part, tokenizer, events, parts[part])
            for part in owned_parts(len(parts))
            if len(parts[part].starts)
        ]
        num_targets = self._report(found)
        all_reduce_gradients(self.trained)
        self._update(step, num_targets)
        return self.losses["item"]

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0)."""
        return learning_rate(self.optim, step, self.plan.num_steps)

    def state(self) -> dict[str, Any]:
        """Weights and optimizer state for `foundation.checkpoint`; its tensors are views of the live ones."""
        return {
            "weights": self.trained.state_dict(),
            "optimizer": get_optimizer_state_dict(self.trained, self.optimizer),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `load_checkpoint` read into `state()`."""
        self.trained.load_state_dict(state["weights"])
        set_optimizer_state_dict(self.trained, self.optimizer, state["optimizer"])

    def _backward(
        self, step: int, part: int, tokenizer: Tokenizer, events: EventIds, windows: Batch
    ) -> LossSums:
        """Adds the gradients of one part's summed loss."""
        rng = np.random.default_rng([self.plan.seed, step, part])
        torch.manual_seed(int(rng.integers(1 << 63)))
        model, objective = self.model, self.objective
        span = span_rows(windows.starts, windows.stops)
        facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
        mask_context(facet_ids, tokenizer.request_columns, objective.config.masked_context, rng)
        counts = model.item_tower.counts
        items = model.item_tower(hidden=hidden_items(len(counts), self.plan.hidden_share, rng))
        x_TD = model.tokens(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), items)
        where, times = layout(torch.from_numpy(span.lengths)), torch.from_numpy(events.timestamp[span.rows])
        losses = objective.loss(
            model.representations(x_TD, where, times, objective.config.layer_weight > 0),
            items.vectors,
            counts > 0,
            model.config.temperature,
            objective.targets(events, span, self.plan.histories.of(windows.starts)),
            torch.default_generator,
        )
        losses.total.backward()
        return losses

    def _report(self, found: list[LossSums]) -> int:
        """Sets `losses` to the means over all processes; returns how many tokens had a target."""
        names = self.objective.part_names
        sums = torch.zeros(len(names) + 1, 2, dtype=torch.float64)
        for losses in found:
            sums[:-1] += torch.stack([losses.parts[name] for name in names])
            sums[-1, 1] += losses.num_targets
        all_reduce_sum(sums)
        means = (sums[:, 0] / sums[:, 1].clamp_min(1)).tolist()
        self.losses = dict(zip(names, means, strict=False))
        return max(1, int(sums[-1, 1]))

    def _update(self, step: int, num_targets: int) -> None:
        for parameter in self.trained.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(num_targets)
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.optim.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
