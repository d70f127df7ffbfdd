"""Optimizer steps of a run whose item ids are spread over its processes; all else is as in `foundation.trainer`.

A step looks the rows of all its parts up at once; each part's softmax is over its targets and sampled negatives.
Letters: U different item rows of a step, or of a part, on this rank; I item rows; D model width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.distributed import all_reduce_gradients, is_first_rank, owned_parts
from foundation.item_table import ItemTableConfig
from foundation.layout import layout
from foundation.learning_rate import OptimConfig
from foundation.masking import hidden_items, mask_context
from foundation.model import FoundationModel
from foundation.objectives.negatives import Negatives
from foundation.objectives.objective import LossSums, Objective, SampledItems, Targets
from foundation.sharded_items import ShardedItemIds, unique_rows
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.trainer import RunPlan, Trainer
from foundation.training_batches import Batch
from foundation.window import Span, span_rows


class _Part(NamedTuple):
    """All of a part that is drawn or looked up before its forward pass."""

    span: Span
    facet_ids: NDArray[np.int64]
    item_ids: Tensor
    hidden: Tensor
    targets: Targets
    negatives: Negatives
    dropout_seed: int


class ShardedTrainer(Trainer):
    """A `Trainer` whose model's id table is a `ShardedItemIds`; a process group must be there.

    Args:
        model, objective, optim, plan: as in `Trainer`; the objective's softmax is sampled.
        config: of the table.

    Raises:
        ValueError: the softmax isn't sampled.
    """

    def __init__(
        self,
        model: FoundationModel,
        objective: Objective,
        optim: OptimConfig,
        plan: RunPlan,
        config: ItemTableConfig,
    ) -> None:
        config.check_softmax(objective.config.softmax)
        self._rate = config.item_learning_rate
        self.table = ShardedItemIds(model.item_tower.id_embedding.weight.detach(), config)
        super().__init__(self._without_ids(model), objective, optim, plan)

    def step(self, step: int, tokenizer: Tokenizer, events: EventIds, batch: Batch) -> float:
        """As `Trainer.step`."""
        self.trained.train()
        pieces = batch.parts(self.plan.parts)
        parts = [
            self._draw(step, number, tokenizer, events, pieces[number])
            for number in owned_parts(len(pieces))
            if len(pieces[number].starts)
        ]
        rows_U, _ = unique_rows(torch.arange(2), *(each for part in parts for each in _rows_of(part)))
        rate = self._rate * self.learning_rate(step) / self.optim.learning_rate
        ids_UD = self.table.begin(rows_U, rate)
        found = [self._forward_backward(part, events, rows_U, ids_UD) for part in parts]
        num_targets = self._report(found)
        self.table.finish(num_targets)
        all_reduce_gradients(self.trained)
        self._update(step, num_targets)
        return self.losses["item"]

    def state(self) -> dict[str, Any]:
        """As `Trainer.state`; the table's part is read back in place."""
        return {**super().state(), "items": self.table.state()}

    def restore_dense(self) -> None:
        """Puts the whole table into the model on rank 0, to evaluate or release it; every rank must call it."""
        whole = self.table.whole()
        if whole is not None and is_first_rank():
            self.model.item_tower.id_embedding = nn.Embedding.from_pretrained(whole)

    def restore_sharded(self) -> None:
        """Undoes `restore_dense`, to train on."""
        self._without_ids(self.model)

    @staticmethod
    def _without_ids(model: FoundationModel) -> FoundationModel:
        # A module without parameters: the optimizer and a checkpoint of the dense part pass it over.
        model.item_tower.id_embedding = nn.Identity()  # type: ignore[assignment]
        return model

    def _draw(self, step: int, number: int, tokenizer: Tokenizer, events: EventIds, windows: Batch) -> _Part:
        rng = np.random.default_rng([self.plan.seed, step, number])
        dropout_seed, negatives_seed = (int(seed) for seed in rng.integers(1 << 63, size=2))
        span = span_rows(windows.starts, windows.stops)
        facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
        mask_context(facet_ids, tokenizer.request_columns, self.objective.config.masked_context, rng)
        counts = self.model.item_tower.counts
        targets = self.objective.targets(events, span, self.plan.histories.of(windows.starts))
        generator = torch.Generator().manual_seed(negatives_seed)
        return _Part(
            span,
            facet_ids,
            torch.from_numpy(item_ids),
            hidden_items(len(counts), self.plan.hidden_share, rng),
            targets,
            self.objective.negatives(targets, len(counts), counts > 0, generator),
            dropout_seed,
        )

    def _forward_backward(
        self, part: _Part, events: EventIds, step_rows: Tensor, step_ids: Tensor
    ) -> LossSums:
        """Adds the gradients of one part's summed loss, of its rows among those of the step."""
        torch.manual_seed(part.dropout_seed)
        model, objective, span = self.model, self.objective, part.span
        rows_U, (item_places, *_) = unique_rows(*_rows_of(part))
        ids_UD = step_ids.index_select(0, torch.searchsorted(step_rows, rows_U))
        items = model.item_tower(rows_U, part.hidden, ids_UD)
        x_TD = model.tokens(torch.from_numpy(part.facet_ids), item_places, items)
        where, times = layout(torch.from_numpy(span.lengths)), torch.from_numpy(events.timestamp[span.rows])
        losses = objective.loss(
            model.representations(x_TD, where, times, objective.config.layer_weight > 0),
            items.vectors,
            model.item_tower.counts > 0,
            model.config.temperature,
            part.targets,
            torch.default_generator,
            SampledItems(part.negatives, rows_U),
        )
        losses.total.backward()
        return losses


def _rows_of(part: _Part) -> tuple[Tensor, Tensor, Tensor]:
    return part.item_ids, part.targets.item, part.negatives.rows
