"""One training run of a foundation model: its optimizer steps, and the state a checkpoint needs.

Letters: B windows, T packed tokens, I item rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from foundation.layout import layout
from foundation.learning_rate import OptimConfig, learning_rate
from foundation.model import FoundationModel
from foundation.objectives.config import ObjectiveConfig
from foundation.objectives.negatives import uniform_negatives
from foundation.objectives.softmax import next_item_loss, sampled_next_item_loss
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.training_batches import Batch
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY
from foundation.window import span_rows


class Trainer:
    """Takes optimizer steps; everything random in a step follows from (seed, step) alone.

    Args:
        model: trained in place.
        optim, objective: how.
        num_steps: of the whole run, for the schedule.
        seed: of dropout, masked ids and sampled negatives.
    """

    def __init__(
        self,
        model: FoundationModel,
        optim: OptimConfig,
        objective: ObjectiveConfig,
        num_steps: int,
        seed: int,
    ) -> None:
        self.model = model
        self.optim = optim
        self.objective = objective
        self.num_steps = num_steps
        self.seed = seed
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
        )

    def step(self, step: int, tokenizer: Tokenizer, events: EventIds, batch: Batch) -> float:
        """Takes optimizer step `step` (from 0) on the windows of `batch`.

        Returns:
            The mean next-item loss of the batch in nats, before the update.
        """
        rng = np.random.default_rng([self.seed, step])
        torch.manual_seed(int(rng.integers(1 << 63)))
        self.model.train()
        loss_sum, count = self._loss(rng, tokenizer, events, batch)
        loss = loss_sum / count.clamp_min(1)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step` (from 0)."""
        return learning_rate(self.optim, step, self.num_steps)

    def state(self) -> dict[str, Any]:
        """Weights and optimizer state for `foundation.checkpoint`; its tensors are views of the live ones."""
        return {
            "model": self.model.state_dict(),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `load_checkpoint` read into `state()`."""
        self.model.load_state_dict(state["model"])
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"])

    def _loss(
        self, rng: np.random.Generator, tokenizer: Tokenizer, events: EventIds, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        span = span_rows(batch.starts, batch.stops)
        facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
        item_ids = mask_items(item_ids, self.objective.masked_share, rng)
        vectors_ID = self.model.item_vectors()
        hidden_TD = self.model(
            torch.from_numpy(facet_ids),
            torch.from_numpy(item_ids),
            layout(torch.from_numpy(span.lengths)),
            vectors_ID,
        )
        targets_T = torch.from_numpy(events.item[span.rows])
        temperature = self.model.config.temperature
        if self.objective.softmax == "full":
            return next_item_loss(hidden_TD, vectors_ID, targets_T, temperature)
        negatives_N = uniform_negatives(
            vectors_ID.shape[0], self.objective.num_negatives, torch.default_generator
        )
        return sampled_next_item_loss(hidden_TD, vectors_ID, targets_T, temperature, negatives_N)


def mask_items(item_ids: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Input item ids `[T]`, about `share` of the known ones out of vocabulary, so that this row learns too.

    An item that the catalogue lacks, at serving, then meets a vector that stands for "some item".
    """
    masked = (rng.random(len(item_ids)) < share) & (item_ids >= FIRST_KNOWN)
    return np.where(masked, OUT_OF_VOCABULARY, item_ids)
