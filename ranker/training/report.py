"""What a co-training run shows of itself while it trains: progress on stderr, curves in TensorBoard."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter

from foundation.progress import Progress
from ranker.training.batch_maker import Batch
from ranker.training.cotraining import Cotraining

STEPS_PER_CURVE_POINT = 10
STEPS_PER_MEASURE = 50
"""Windowed metrics take some tens of milliseconds, of all ranks."""
VALIDATION_REQUESTS_PER_PROFILE = 2
OVERFITTED = 1.02
"""Validation entropy after the last epoch, in units of the best epoch's, from which on a run warns."""


class Report:
    """Of rank 0.

    Args:
        run: to report.
        done: its steps before this start.
        stack: closes what is open when training ends.
    """

    def __init__(self, run: Cotraining, done: int, stack: ExitStack) -> None:
        self.run = run
        self.curves = stack.enter_context(SummaryWriter(run.config.out / "tensorboard", purge_step=done))
        self.progress = stack.enter_context(Progress(run.num_steps, done))
        self.losses = run.trainer.loss_names
        self.entropies: dict[int, float] = {}
        self.validation = run.validation(VALIDATION_REQUESTS_PER_PROFILE)
        self.progress.say(
            f"{run.config.ranker.tower} tower · {run.config.num_epochs} epochs · {run.num_steps:,} steps of "
            f"{run.plan.batch_size} requests · {dist.get_world_size()} processes · {torch.get_num_threads()} threads"
            + (f" · going on after step {done:,}" if done else "")
        )

    def step(self, step: int, means: torch.Tensor, seconds: float, batch: Batch) -> None:
        """One optimizer step: its mean losses over all ranks, its time, and this rank's part of its batch."""
        loss = self.run.trainer.total(means)
        # The other ranks' candidates are about as many.
        candidates = batch.num_candidates * dist.get_world_size()
        self.progress.step(step + 1, loss, seconds, requests=self.run.plan.batch_size, candidates=candidates)
        for said, number in batch.skipped.items():
            self.progress.say(f"skipped {number:,} requests: {said}")
        if step % STEPS_PER_CURVE_POINT:
            return
        self.curves.add_scalar("training/loss", loss, step)
        for name, value in zip(self.losses, means.tolist(), strict=True):
            self.curves.add_scalar(f"training/loss_{name}", value, step)
        for name, rate in self.run.config.optim.rates(step, self.run.num_steps).items():
            self.curves.add_scalar(f"training/learning_rate_{name}", rate, step)
        for name, rate in self.progress.rates().items():
            self.curves.add_scalar(f"training/{name}_per_s", rate, step)

    def measured(self, step: int, figures: dict[str, float]) -> None:
        """Windowed metrics of the candidates trained on; none between two measures."""
        for name, value in figures.items():
            self.curves.add_scalar(f"training/{name}", value, step)

    def epoch(self, epoch: int) -> None:
        """Metrics on the validation profiles after an epoch."""
        if self.validation is None:
            self.progress.say(f"epoch {epoch + 1}/{self.run.config.num_epochs} · no validation requests")
            return
        step = (epoch + 1) * self.run.plan.steps_per_epoch
        evaluation = self.run.evaluate(self.validation)
        for name, value in evaluation.scalars().items():
            self.curves.add_scalar(f"validation/{name}", value, step)
        figures = [
            f"{task} auc {metrics['auc']:.4f} gauc {metrics['gauc']:.4f}"
            for task, metrics in evaluation.metrics.items()
        ]
        self.progress.say(
            f"epoch {epoch + 1}/{self.run.config.num_epochs} · validation {' · '.join(figures)}"
        )
        self._warn_of_overfitting(epoch, [each["normalised_entropy"] for each in evaluation.metrics.values()])

    def _warn_of_overfitting(self, epoch: int, entropies: list[float]) -> None:
        """After the last epoch: whether an earlier one of this start was better. The run keeps the last."""
        self.entropies[epoch] = float(np.nanmean(entropies)) if not np.isnan(entropies).all() else np.nan
        if epoch + 1 < self.run.config.num_epochs or np.isnan(list(self.entropies.values())).any():
            return
        best = min(self.entropies, key=self.entropies.__getitem__)
        if self.entropies[epoch] > OVERFITTED * self.entropies[best]:
            self.progress.say(
                f"warning: validation normalised entropy was {self.entropies[best]:.4f} after epoch {best + 1} and is "
                f"{self.entropies[epoch]:.4f} now: it overfits; --epochs {best + 1} in another --out would do better"
            )
