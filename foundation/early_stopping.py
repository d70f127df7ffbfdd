"""What validation said after each epoch, and what follows: which epoch was best, and whether to go on.

Kept whole in every checkpoint, so that a resumed run decides as an unbroken one. Letters: E epochs of the run,
M validation figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FIGURES = ("loss", "ndcg@10", "hr@10")


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """When a run ends before its last epoch.

    Attributes:
        patience: epochs in a row without a better validation figure after which the run ends, and its release
            is written from the best epoch; 0 takes all epochs and releases the last.
        metric: the validation figure: "ndcg@10" (higher is better) or "loss" (lower).
    """

    patience: int = 0
    metric: Literal["ndcg@10", "loss"] = "ndcg@10"

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; it must be at least 0 (0 = never stop early)")
        if self.metric not in ("ndcg@10", "loss"):
            raise ValueError(f"metric is {self.metric!r}; it must be 'ndcg@10' or 'loss'")


class ValidationHistory:
    """Validation figures of the epochs done.

    Args:
        config: what counts as better.
        epochs: E, of the whole run.

    Attributes:
        table: `[E, M]` float64, NaN where there is no figure (yet).
        num_epochs: int64 scalar, epochs validated.
    """

    def __init__(self, config: EarlyStoppingConfig, epochs: int) -> None:
        self.config = config
        self.table = torch.full((epochs, len(FIGURES)), math.nan, dtype=torch.float64)
        self.num_epochs = torch.zeros((), dtype=torch.int64)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; the live tensors, read back in place."""
        return {"table": self.table, "num_epochs": self.num_epochs}

    def add(self, figures: dict[str, float]) -> None:
        """Notes the figures after the next epoch; others than `FIGURES` are not kept, missing ones are NaN."""
        row = [figures.get(name, math.nan) for name in FIGURES]
        self.table[int(self.num_epochs)] = torch.tensor(row, dtype=torch.float64)
        self.num_epochs += 1

    def figures(self, epoch: int) -> dict[str, float]:
        """The figures after `epoch` (from 0), without those that there are none of."""
        row = zip(FIGURES, self.table[epoch].tolist(), strict=True)
        return {name: value for name, value in row if not math.isnan(value)}

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 0) with the best figure, NaN being worst; at least one must be validated."""
        values = self.table[: int(self.num_epochs), FIGURES.index(self.config.metric)]
        gains = -values if self.config.metric == "loss" else values
        return int(gains.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).argmax())

    @property
    def released_epoch(self) -> int:
        """The epoch (from 0) whose weights the run is for: the best with early stopping, else the last."""
        return self.best_epoch if self.config.patience else int(self.num_epochs) - 1

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: all epochs done, or patience lost."""
        done = int(self.num_epochs)
        if done == len(self.table):
            return True
        return bool(self.config.patience and done and done - 1 - self.best_epoch >= self.config.patience)
