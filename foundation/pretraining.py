"""A pre-training run: its settings, its plan of steps, and its state.

Letters: B windows of a batch, T packed tokens, I item rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import tyro

from foundation.checkpoint import (
    checkpoint_of,
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from foundation.dataset import Dataset
from foundation.distributed import first_rank_says, is_first_rank
from foundation.early_stopping import FIGURES, EarlyStoppingConfig, ValidationHistory
from foundation.errors import DataError
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.item_table import ItemTableConfig
from foundation.learning_rate import OptimConfig
from foundation.leave_one_out import last_events, model_ranks, ranking_metrics
from foundation.masking import cold_share
from foundation.model import FoundationConfig, FoundationModel
from foundation.objectives.config import ObjectiveConfig
from foundation.objectives.objective import Objective, intent_label
from foundation.protocol import ProtocolName
from foundation.split import VALIDATION, training_mask
from foundation.tokenizer import Tokenizer
from foundation.trainer import RunPlan, Trainer
from foundation.training_batches import (
    Batch,
    BatchConfig,
    epoch_batches,
    padding_share,
    training_histories,
)
from foundation.vocabulary import build_vocabularies

if TYPE_CHECKING:
    from foundation.sharded_trainer import ShardedTrainer

# On the command line the parts of a run's settings go without their names, and what they hold with it:
# --learning-rate, --decoder.width, --window.block.
_FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-trains a causal decoder on the histories of the training profiles.

    Attributes:
        data: folder with events.parquet, items.parquet and schema.toml.
        out: folder of this run; the release is written to its sub-folder `release`.
        protocol: what is held out of training, see `foundation.protocol`; co-training needs "profiles".
        seed: of initial weights, windows, batch order, dropout and masked ids.
        epochs: passes over the training profiles, one window of each per epoch.
        checkpoint_every: optimizer steps between checkpoints; the newest two are kept.
    """

    data: Path
    out: Path
    protocol: ProtocolName = "profiles"
    seed: int = 0
    epochs: int = 8
    checkpoint_every: int = 100
    model: Annotated[FoundationConfig, _FLAT] = field(default_factory=FoundationConfig)
    objective: Annotated[ObjectiveConfig, _FLAT] = field(default_factory=ObjectiveConfig)
    optim: Annotated[OptimConfig, _FLAT] = field(default_factory=OptimConfig)
    batch: Annotated[BatchConfig, _FLAT] = field(default_factory=BatchConfig)
    early_stopping: Annotated[EarlyStoppingConfig, _FLAT] = field(default_factory=EarlyStoppingConfig)
    item_table: Annotated[ItemTableConfig, _FLAT] = field(default_factory=ItemTableConfig)

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("epochs", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        self.item_table.check_softmax(self.objective.softmax)
        longest, window = max(self.batch.progressive, default=0), self.model.window.window
        if longest > window:
            raise ValueError(
                f"progressive has a window of {longest} events; none may be above the model's window, {window}"
            )


class Pretraining:
    """A run over a dataset, on any number of processes: its data looked up once, its plan, its trainer.

    Attributes:
        steps_before: optimizer steps before each epoch, and at last of all.
        padding_share: of the dense grids that attention works on, over the whole run.
        validation: figures after each epoch done.
    """

    def __init__(self, config: PretrainConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
        events = dataset.events
        self.events = self.tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
        self.histories = training_histories(dataset)
        if not len(self.histories.num_events):
            raise DataError(
                f"{dataset.folder}: no training profile has two events; there is nothing to train on"
            )
        self._check_validation()
        self.steps_before = np.cumsum([0, *(len(self.batches(epoch)) for epoch in range(config.epochs))])
        every = (batch for epoch in range(config.epochs) for batch in self.batches(epoch))
        self.padding_share = padding_share(every, config.batch.parts)
        torch.manual_seed(config.seed)
        intent = intent_label(config.objective, self.tokenizer)
        shape = replace(config.model, intent_classes=0 if intent is None else intent.num_classes)
        model = build_model(shape, self.tokenizer, dataset)
        objective = Objective(config.objective, self.tokenizer, model)
        self._check_targets(objective)
        self._sharded = self._sharded_trainer(model, objective)
        self.trainer = self._sharded or Trainer(model, objective, config.optim, self._plan())
        # Kept in checkpoints: sum of the epoch's losses so far, and of how many steps; tokens and seconds.
        self.epoch_loss = torch.zeros(2, dtype=torch.float64)
        self.work = torch.zeros(2, dtype=torch.float64)
        self.validation = ValidationHistory(config.early_stopping, config.epochs)

    def _sharded_trainer(self, model: FoundationModel, objective: Objective) -> ShardedTrainer | None:
        config = self.config
        if config.item_table.items == "dense":
            return None
        # Late, so that a run with a dense table doesn't wait for TorchRec.
        from foundation.sharded_trainer import ShardedTrainer  # noqa: PLC0415

        return ShardedTrainer(model, objective, config.optim, self._plan(), config.item_table)

    def _plan(self) -> RunPlan:
        share = self.config.objective.masked_share
        if share < 0:
            seen = training_mask(self.dataset)
            share = cold_share(self.events.item[seen], self.events.timestamp[seen])
        return RunPlan(self.histories, self.num_steps, self.config.batch.parts, share, self.config.seed)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.steps_before[-1])

    def batches(self, epoch: int) -> list[Batch]:
        """The batches of `epoch` (from 0), in order."""
        config, batch = self.config, self.config.batch
        window = batch.window(config.model.window, epoch, config.epochs)
        return epoch_batches(
            self.histories, window, batch.tokens_per_batch, config.seed, epoch, batch.latest_share
        )

    def save(self, step: int) -> None:
        """Writes the checkpoint of `step` steps done; every rank must call it, as all that is below."""
        save_checkpoint(self._checkpoints, step, self._state())

    def resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the steps done."""
        newest = latest_checkpoint(self._checkpoints)
        if newest is None:
            return 0
        state = self._state()
        load_checkpoint(newest, state)
        self.trainer.load_state(state)
        return checkpoint_step(newest)

    def end_epoch(self) -> dict[str, float]:
        """Validates the epoch that was trained last, and keeps its weights if a release is to be of them.

        Returns:
            The validation figures, from rank 0 for all.
        """
        if self._sharded is not None:
            self._sharded.restore_dense()
        here = self._validate() if is_first_rank() else {}
        if self._sharded is not None:
            self._sharded.restore_sharded()
        figures = {name: first_rank_says(here.get(name, float("nan"))) for name in FIGURES}
        self.validation.add(figures)
        epoch = int(self.validation.num_epochs) - 1
        step = int(self.steps_before[epoch + 1])
        if self.config.early_stopping.patience and self.validation.best_epoch == epoch:
            save_checkpoint(self._best, step, self._weights())
        self.save(step)
        return self.validation.figures(epoch)

    def load_released(self) -> int:
        """Makes the trainer's weights those to release; the epoch (from 0) that they are of."""
        epoch = self.validation.released_epoch
        if self.config.early_stopping.patience:
            state = self._weights()
            load_checkpoint(checkpoint_of(self._best, int(self.steps_before[epoch + 1])), state)
            self.trainer.trained.load_state_dict(state["weights"])
        if self._sharded is not None:
            self._sharded.restore_dense()
        return epoch

    @property
    def mean_loss(self) -> float:
        """Mean over the steps of the current epoch."""
        total, steps = self.epoch_loss.tolist()
        return total / max(1.0, steps)

    def throughput(self) -> dict[str, float]:
        """Seconds inside training steps, over all starts of this run, and packed tokens per such second."""
        tokens, seconds = self.work.tolist()
        return {"training_s": seconds, "tokens_per_s": tokens / seconds}

    def _validate(self) -> dict[str, float]:
        """Loss and ranking of the validation events; nothing where the protocol has none."""
        tested = last_events(self.dataset, self.events, VALIDATION)
        if not len(tested.last_row):
            return {}
        ranks, loss = model_ranks(self.trainer.model, self.tokenizer, self.events, tested)
        metrics = ranking_metrics(ranks)
        return {"loss": loss, "ndcg@10": metrics["ndcg@10"], "hr@10": metrics["hr@10"]}

    def _check_validation(self) -> None:
        if not self.config.early_stopping.patience:
            return
        if not len(last_events(self.dataset, self.events, VALIDATION).last_row):
            raise DataError(
                f"{self.dataset.folder}: no event to validate on, which early stopping needs; set --patience 0"
            )

    def _check_targets(self, objective: Objective) -> None:
        if objective.signal is None:
            return
        rows = np.flatnonzero(training_mask(self.dataset))
        if not objective.signal.weights(self.events, rows).any():
            raise DataError(
                f"objective.signal gives all {len(rows)} training events a weight of 0; set --signal.values or "
                "--signal.missing, or lower --signal.threshold"
            )

    @property
    def _checkpoints(self) -> Path:
        return self.config.out / "checkpoints"

    @property
    def _best(self) -> Path:
        return self.config.out / "best"

    def _weights(self) -> dict[str, Any]:
        sharded = {} if self._sharded is None else {"items": self._sharded.table.state()}
        return {"weights": self.trainer.trained.state_dict(), **sharded}

    def _state(self) -> dict[str, Any]:
        counted = {"epoch_loss": self.epoch_loss, "work": self.work, "validation": self.validation.state()}
        return {**self.trainer.state(), **counted}


def build_model(config: FoundationConfig, tokenizer: Tokenizer, dataset: Dataset) -> FoundationModel:
    """A fresh model for the vocabularies of `tokenizer` and the catalogue of `dataset`."""
    facts = item_facts(tokenizer, dataset.catalogue)
    num_feature_rows = num_item_feature_rows(tokenizer.schema, tokenizer.vocabularies)
    return FoundationModel(config, tokenizer.num_facet_rows, num_feature_rows, facts, tokenizer.age_column)
