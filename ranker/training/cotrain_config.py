"""Settings of a co-training run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ranker.model import RankerConfig, TowerKind
from ranker.requests.logged import LoggedConfig
from ranker.requests.request import RequestConfig
from ranker.rows.plan import PlanConfig
from ranker.training.augmentation import AugmentationConfig
from ranker.training.losses import LossConfig
from ranker.training.optim import RankerOptimConfig
from ranker.training.table_plan import ShardingConfig

EPOCHS: dict[TowerKind, int] = {"decoder": 5, "pooled": 20}


@dataclass(frozen=True)
class CotrainConfig:
    """Trains a ranker on requests of the training profiles, the imported decoder along with it.

    Attributes:
        release: folder of a foundation release.
        out: folder of this run; the trained ranker is written to its sub-folder `ranker`.
        data: dataset folder, of which request rows are made in OUT/rows first.
        rows: folder of request rows that `python -m ranker.features` made with this release, in place of `data`.
        seed: of initial weights, requests, their order and dropout.
        epochs: times that the requests are shown, each time another draw while there are some; None for what the
            tower needs: 5 with the decoder, 20 without, whose steps cost a tenth and which learns all it knows
            from requests.
        requests_per_batch: requests of an optimizer step, over all ranks.
        dropout: of the decoder; None keeps the release's.
        checkpoint_every: optimizer steps between checkpoints; the newest two are kept.
        draws: times that requests are made of events, where `data` is given; logged requests are taken once.
        workers: processes that read rows, for each process that trains; 0 to read in the training process.
        requests, logged: how rows are made, where `data` is given. `logged.bad_rows` is also what becomes of rows that
            can't be read in training.
    """

    release: Path
    out: Path
    data: Path | None = None
    rows: Path | None = None
    seed: int = 0
    epochs: int | None = None
    requests_per_batch: int = 64
    dropout: float | None = None
    checkpoint_every: int = 100
    draws: int = 5
    workers: int = 0
    ranker: RankerConfig = field(default_factory=RankerConfig)
    requests: RequestConfig = field(default_factory=lambda: RequestConfig(per_profile=1))
    plan: PlanConfig = field(default_factory=PlanConfig)
    logged: LoggedConfig = field(default_factory=LoggedConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: RankerOptimConfig = field(default_factory=RankerOptimConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.rows is None):
            raise ValueError("give either data, to make request rows of, or rows that were made of it")
        if self.rows is not None:
            made = (self.draws, self.requests, replace(self.logged, bad_rows="stop"))
            if made != (CotrainConfig.draws, RequestConfig(per_profile=1), LoggedConfig()):
                raise ValueError(
                    "draws, requests and all of logged but bad_rows say how rows are made of data; the rows given are"
                    " made: leave them out, or set them in python -m ranker.features"
                )
        least = {"seed": 0, "num_epochs": 1, "requests_per_batch": 1, "checkpoint_every": 1}
        least |= {"draws": 1, "workers": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                field_name = name.removeprefix("num_")
                raise ValueError(f"{field_name} is {getattr(self, name)}; it must be at least {smallest}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def num_epochs(self) -> int:
        """`epochs`, or what the tower needs."""
        return EPOCHS[self.ranker.tower] if self.epochs is None else self.epochs
