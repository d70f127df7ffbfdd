"""A co-training run: its plan of steps, and its state.

Shapes: B requests of a batch, C candidates over the batch, N tasks, P parts of the loss.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from foundation.checkpoint import BackgroundCheckpoints, checkpoint_step, latest_checkpoint, load_checkpoint
from foundation.dropout import set_dropout
from foundation.errors import DataError
from foundation.release import Release
from ranker.assembly import DataFeatures, assemble_on
from ranker.evaluation.evaluation import Evaluation, evaluate
from ranker.requests.request import at_most
from ranker.rows.folder import RowFolder
from ranker.rows.loader import LoaderConfig, RowLoader, prefetched
from ranker.rows.plan import Plan
from ranker.rows.row_groups import TrainingRowGroups
from ranker.rows.rows import Rows
from ranker.training.batch_maker import Batch, BatchMaker
from ranker.training.cotrain_config import CotrainConfig
from ranker.training.table_plan import PLAN
from ranker.training.targets import head_labels
from ranker.training.trainer import RankerTrainer


class Cotraining:
    """A run over request rows: its loader, its trainer, and a whole copy of the model to evaluate.

    Args:
        config: settings.
        rows: made with `release`.
        release: whose decoder is trained on.

    Attributes:
        whole: the unsharded ranker; its weights are the trained ones after `gather`.
        checkpoints: a context to train within, since they are written while steps go on.
        skipped: requests of this start that could not be read, by what was said of their row group, on this rank.
    """

    def __init__(self, config: CotrainConfig, rows: RowFolder, release: Release) -> None:
        self.config = config
        self.folder = rows
        self.tasks = rows.tasks
        self.log_rates = tuple(math.log(share) for share in rows.manifest.negatives_kept)
        source = TrainingRowGroups(rows)
        _check_sizes(config, rows, source)
        self.plan = Plan(source.sizes, config.requests_per_batch, config.seed, config.plan)
        loading = LoaderConfig(config.workers, config.logged.bad_rows)
        self.loader = RowLoader(source, self.plan, loading, dist.get_rank(), dist.get_world_size())
        torch.manual_seed(config.seed)
        data = DataFeatures(rows.features, rows.items)
        ranker, self.features = assemble_on(config.ranker, data, release, [task.name for task in self.tasks])
        if config.dropout is not None:
            set_dropout(ranker, config.dropout)
        self.whole = copy.deepcopy(ranker)
        sharding = replace(config.sharding, plan=config.out / PLAN)
        self.trainer = RankerTrainer(
            ranker, config.optim, config.loss, release.heads, self.num_steps, config.seed, sharding
        )
        learns_heads = any(name.startswith("head.") for name in self.trainer.loss_names)
        self.maker = BatchMaker(
            self.features,
            config.loss,
            head_labels(release) if learns_heads else None,
            config.augmentation,
            config.seed,
        )
        self.checkpoints = BackgroundCheckpoints(config.out / "checkpoints")
        # Kept in checkpoints: requests and candidates trained on, and seconds inside training steps.
        self.work = torch.zeros(3, dtype=torch.float64)
        # Of this rank, since they were last added up over all.
        self._mine = torch.zeros(2, dtype=torch.float64)
        self.skipped: Counter[str] = Counter()

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.plan.steps_per_epoch * self.config.num_epochs

    def batches(self, first: int) -> AbstractContextManager[Iterator[Batch]]:
        """This rank's parts of all steps from `first` (from 0) on, made ahead of training."""
        return prefetched(self.loader.shares(first, self.num_steps), self.maker.batch)

    def batch(self, step: int) -> Batch:
        """This rank's part of one step."""
        return self.maker.batch(next(self.loader.shares(step, step + 1)))

    def train_on(self, step: int, batch: Batch) -> torch.Tensor:
        """Optimizer step `step` on this rank's part of a batch; mean losses `[P]` over all ranks."""
        means = self.trainer.step(step, batch.inputs, batch.targets)
        self._mine += torch.tensor([batch.num_requests, batch.num_candidates])
        self.skipped.update(batch.skipped)
        return means

    def gather(self) -> bool:
        """Brings all ranks' weights into `whole` on rank 0, and says True there; every rank must call it."""
        state = self.trainer.ranker_state()
        if state is None:
            return False
        self.whole.load_state_dict(state)
        return True

    def validation(self, per_profile: int) -> Rows | None:
        """At most so many requests of each validation profile, the same in every run; None where there are none."""
        if not self.folder.num_rows("validation"):
            return None
        rows = self.folder.read_all("validation")
        _, profile = np.unique(rows.profile_id, return_inverse=True)
        order = np.argsort(profile, kind="stable")
        return rows.take(order[at_most(per_profile, profile[order], np.random.default_rng(0))])

    def evaluate(self, rows: Rows) -> Evaluation:
        """Metrics of `whole`."""
        return evaluate(self.whole, self.features, rows, self.log_rates, self.folder.facet_names)

    def save(self, step: int) -> None:
        """Begins to write the checkpoint of `step` steps done; every rank must call it, within `checkpoints`."""
        self._add_up()
        self.checkpoints.save(step, self._state())

    def resume(self) -> int:
        """Loads the newest checkpoint, if any, and returns the steps done; every rank must call it."""
        newest = latest_checkpoint(self.config.out / "checkpoints")
        if newest is None:
            return 0
        load_checkpoint(newest, self._state())
        return checkpoint_step(newest)

    def throughput(self) -> dict[str, float]:
        """Seconds inside training steps, over all starts of this run up to its last checkpoint, and work per second."""
        requests, candidates, seconds = self.work.tolist()
        return {
            "training_s": seconds,
            "requests_per_s": requests / seconds,
            "candidates_per_s": candidates / seconds,
        }

    def all_skipped(self) -> dict[str, int]:
        """`skipped` of all ranks; every rank must call it."""
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, dict(self.skipped))
        return dict(sum((Counter(each) for each in of_ranks), Counter()))

    def _add_up(self) -> None:
        dist.all_reduce(self._mine)
        self.work[:2] += self._mine
        self._mine.zero_()

    def _state(self) -> dict[str, Any]:
        return {**self.trainer.state(), "work": self.work}


def _check_sizes(config: CotrainConfig, rows: RowFolder, source: TrainingRowGroups) -> None:
    processes = dist.get_world_size()
    if config.requests_per_batch < processes:
        raise DataError(
            f"requests_per_batch is {config.requests_per_batch}; it must be at least the number of processes,"
            f" {processes}"
        )
    if not rows.num_rows("test"):
        raise DataError(
            f"{rows.path}: holds no test requests, by which a ranker is measured; it needs more profiles"
        )
    per_draw = min(int(sizes.sum()) for sizes in source.sizes)
    if per_draw < processes:
        raise DataError(
            f"{rows.path}: has {per_draw} training requests behind the cut; co-training needs at least one for each"
            " process"
        )
