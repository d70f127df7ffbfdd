"""A co-training run: its settings, its plan of steps, and its state.

Shapes: B requests of a batch, C candidates over the batch, N tasks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from foundation.checkpoint import BackgroundCheckpoints, checkpoint_step, latest_checkpoint, load_checkpoint
from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.release import Release
from ranker.assembly import assemble_ranker
from ranker.evaluation.evaluation import Evaluation, evaluate
from ranker.model import Ranker, RankerConfig, TowerKind
from ranker.requests.request import RequestConfig, Requests, hide_candidates
from ranker.requests.source import RequestSource
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks
from ranker.training.batches import BatchBuilder, batch_order, rank_share
from ranker.training.losses import LossConfig
from ranker.training.optim import RankerOptimConfig
from ranker.training.table_plan import PLAN, ShardingConfig
from ranker.training.trainer import RankerTrainer

EPOCHS: dict[TowerKind, int] = {"decoder": 5, "pooled": 20}


@dataclass(frozen=True)
class CotrainConfig:
    """Trains a ranker on requests of the training profiles, the imported decoder along with it.

    Attributes:
        data: dataset folder.
        release: folder of a foundation release trained on it.
        out: folder of this run; the trained ranker is written to its sub-folder `ranker`.
        seed: of initial weights, requests, their order and dropout.
        epochs: times that requests are drawn from the training profiles; None for what the tower needs: 5 with
            the decoder, 20 without, whose steps cost a tenth and which learns all it knows from requests.
        requests_per_batch: requests of an optimizer step, over all ranks.
        dropout: of the decoder; None keeps the release's.
        hidden_candidates: share of candidates that are made unknown in training, see `hide_candidates`.
        checkpoint_every: optimizer steps between checkpoints; the newest two are kept.
    """

    data: Path
    release: Path
    out: Path
    seed: int = 0
    epochs: int | None = None
    requests_per_batch: int = 64
    dropout: float | None = None
    hidden_candidates: float = 0.01
    checkpoint_every: int = 100
    ranker: RankerConfig = field(default_factory=RankerConfig)
    requests: RequestConfig = field(default_factory=lambda: RequestConfig(per_profile=1))
    loss: LossConfig = field(default_factory=LossConfig)
    optim: RankerOptimConfig = field(default_factory=RankerOptimConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)

    def __post_init__(self) -> None:
        least = {"seed": 0, "num_epochs": 1, "requests_per_batch": 1, "checkpoint_every": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                field_name = name.removeprefix("num_")
                raise ValueError(f"{field_name} is {getattr(self, name)}; it must be at least {smallest}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if not 0 <= self.hidden_candidates < 1:
            raise ValueError(f"hidden_candidates is {self.hidden_candidates}; it must be in [0, 1)")

    @property
    def num_epochs(self) -> int:
        """`epochs`, or what the tower needs."""
        return EPOCHS[self.ranker.tower] if self.epochs is None else self.epochs


class Cotraining:
    """A run over a dataset: its requests, its trainer, and a whole copy of the model to evaluate.

    Args:
        config: settings.
        dataset: looked up once, here.
        release: whose decoder is trained on.

    Attributes:
        whole: the unsharded ranker; its weights are the trained ones after `gather`.
        checkpoints: a context to train within, since they are written while steps go on.
    """

    def __init__(self, config: CotrainConfig, dataset: Dataset, release: Release) -> None:
        if config.requests_per_batch < dist.get_world_size():
            raise DataError(
                f"requests_per_batch is {config.requests_per_batch}; it must be at least the number of processes,"
                f" {dist.get_world_size()}"
            )
        self.config = config
        self.dataset = dataset
        self.tasks = load_tasks(dataset.folder / "schema.toml")
        self._source = RequestSource(dataset, self.tasks)
        per_epoch = len(self._draw(0).profile)
        if per_epoch < max(1, dist.get_world_size()):
            raise DataError(
                f"{dataset.folder}: has {per_epoch} training requests behind the cut; co-training needs at least"
                " one for each process"
            )
        self.batch_size = min(config.requests_per_batch, per_epoch)
        self.steps_per_epoch = per_epoch // self.batch_size
        torch.manual_seed(config.seed)
        ranker, self.features = assemble_ranker(
            config.ranker, dataset, release, [task.name for task in self.tasks]
        )
        if config.dropout is not None:
            set_dropout(ranker, config.dropout)
        self.builder = BatchBuilder(dataset, self.features)
        self.whole = copy.deepcopy(ranker)
        sharding = replace(config.sharding, plan=config.out / PLAN)
        self.trainer = RankerTrainer(
            ranker, config.optim, config.loss, None, self.num_steps, config.seed, sharding
        )
        self.checkpoints = BackgroundCheckpoints(config.out / "checkpoints")
        # Kept in checkpoints: requests and candidates trained on, and seconds inside training steps.
        self.work = torch.zeros(3, dtype=torch.float64)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.num_epochs

    def epoch_requests(self, epoch: int) -> Requests:
        """The requests of `epoch` (from 0), batch by batch; a pure function of data, settings and epoch."""
        seed = self.config.seed
        requests = self._draw(epoch)
        rng = np.random.default_rng((seed, epoch, 1))
        return requests.take(batch_order(self.builder.history_lengths(requests), self.batch_size, rng))

    def batch(self, requests: Requests, nth: int) -> Requests:
        """The `nth` batch of an epoch's requests, of all ranks together."""
        return requests.take(np.arange(nth * self.batch_size, (nth + 1) * self.batch_size))

    def train_on(self, step: int, batch: Requests) -> torch.Tensor:
        """Optimizer step `step` on this rank's share of a batch; mean losses `[P]` over all ranks."""
        # Of the whole batch, so that any number of ranks hides the same.
        rng = np.random.default_rng((self.config.seed, step, 2))
        batch = hide_candidates(batch, self.config.hidden_candidates, rng)
        share = rank_share(dist.get_rank(), dist.get_world_size())
        mine = batch.take(np.arange(len(batch.profile))[share])
        targets = self.builder.targets(mine, self.config.loss.tokens_per_request)
        return self.trainer.step(step, self.builder.inputs(mine), targets)

    def gather(self) -> bool:
        """Brings all ranks' weights into `whole` on rank 0, and says True there; every rank must call it."""
        state = self.trainer.ranker_state()
        if state is None:
            return False
        self.whole.load_state_dict(state)
        return True

    def held_out(self, which: str, per_profile: int = 0) -> Requests:
        """Requests of the validation or test profiles; their seed is fixed, so that runs can be compared."""
        assert which in ("validation", "test"), which
        settings = self.config.requests
        config = RequestConfig(settings.positives, settings.negatives, settings.candidates, per_profile)
        return self._source.build("validation" if which == "validation" else "test", config, 0)

    def evaluate(self, requests: Requests) -> Evaluation:
        """Metrics of `whole`."""
        return evaluate(self.whole, self.features, self.rows(requests))

    def rows(self, requests: Requests) -> Rows:
        """Request rows of `held_out` requests."""
        return RowMaker(self.dataset, self.features).rows(requests)

    def save(self, step: int) -> None:
        """Begins to write the checkpoint of `step` steps done; every rank must call it, within `checkpoints`."""
        self.checkpoints.save(step, self._state())

    def resume(self) -> int:
        """Loads the newest checkpoint, if any, and returns the steps done; every rank must call it."""
        newest = latest_checkpoint(self.checkpoints.folder)
        if newest is None:
            return 0
        load_checkpoint(newest, self._state())
        return checkpoint_step(newest)

    def throughput(self) -> dict[str, float]:
        """Seconds inside training steps, over all starts of this run, and what they trained on per second."""
        requests, candidates, seconds = self.work.tolist()
        return {
            "training_s": seconds,
            "requests_per_s": requests / seconds,
            "candidates_per_s": candidates / seconds,
        }

    def _draw(self, epoch: int) -> Requests:
        return self._source.build("train", self.config.requests, (self.config.seed, epoch))

    def _state(self) -> dict[str, Any]:
        return {**self.trainer.state(), "work": self.work}


def set_dropout(model: Ranker, share: float) -> None:
    """Changes every dropout of a model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
