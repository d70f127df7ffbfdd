"""Settings of `benchmarks.staleness`, and what follows from them for its two runs of pre-training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from benchmarks.stale_ranking import Masked
from foundation.errors import DataError
from foundation.home import home
from foundation.objectives.config import MultiTokenConfig
from foundation.protocol import ProtocolName

NEXT_ITEM, MULTI_TOKEN = "next_item", "multi_token"


@dataclass(frozen=True)
class StalenessConfig:
    """Pre-trains with next items and with multi-token prediction, and ranks by representations of k events ago.

    Attributes:
        data: dataset folder; without it MovieLens-1M, fetched where it isn't yet; with --releases that of their data.
        out: the two runs go into folders of it; by default runs/staleness under $MARQUEE_HOME.
        releases: the next-item and the multi-token release to measure, instead of training any; what concerns
            training is then ignored.
        k: events of staleness, growing.
        role: which held-out events; settings are chosen on validation, and test is looked at once.
        masked: items that don't compete: "then": those of the history that the representation knows; "now": also
            those since, as where a server filters what was seen.
        plot: a PNG to draw.
        protocol: of training. Under "last-two" and "last" the events between a stale request and the target are
            also training data, under "profiles" no event of a tested profile is.
        epochs: of both runs.
        width: of both decoders.
        dropout: of both decoders.
        seed: of both runs, and of the bootstrap.
        pretrain: further arguments of foundation.pretrain for both runs, as one string.
        multi_token: what the multi-token run predicts.
        json: print the JSON document alone.
    """

    data: Path | None = None
    out: Path | None = None
    releases: tuple[Path, Path] | None = None
    k: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    role: Literal["test", "validation"] = "test"
    masked: Masked = "then"
    plot: Path | None = None
    protocol: ProtocolName = "last-two"
    epochs: int = 12
    width: int = 64
    dropout: float = 0.2
    seed: int = 0
    pretrain: str = ""
    multi_token: MultiTokenConfig = field(
        default_factory=lambda: MultiTokenConfig(
            horizon=32, half_life=16.0, half_life_unit="events", normalise=True
        )
    )
    json: bool = False

    def __post_init__(self) -> None:
        if not self.k or self.k[0] < 0 or any(a >= b for a, b in pairwise(self.k)):
            shown = " ".join(map(str, self.k))
            raise DataError(
                f"--k is '{shown}'; it must be numbers of events, at least 0, each above the last"
            )
        for name, least in (("epochs", 1), ("width", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise DataError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.dropout < 1:
            raise DataError(f"--dropout is {self.dropout}; it must be in [0, 1)")
        if self.releases is None and self.multi_token.horizon < 2:
            raise DataError(
                f"--multi-token.horizon is {self.multi_token.horizon}; it must be at least 2: one event is "
                "next-item training"
            )
        if self.releases is None and self.role == "validation" and self.protocol == "last":
            raise DataError(
                "--role validation: protocol 'last' holds no validation event out; choose --protocol last-two"
            )

    @property
    def folder(self) -> Path:
        """Of the runs."""
        return self.out or home() / "runs" / "staleness"


def pretrain_arguments(config: StalenessConfig, data: Path, prediction: MultiTokenConfig) -> list[str]:
    """Arguments of foundation.pretrain for the run that learns `prediction`; horizon 0: the next item.

    Runs of one next-item setting share a folder, whatever multi-token settings are tried beside it.
    """
    decayed = f"-half{prediction.half_life:g}{prediction.half_life_unit}" if prediction.half_life else ""
    within = f"-within{prediction.seconds:g}s" if prediction.seconds else ""
    normalised = "-normalised" if prediction.normalise else ""
    name = f"{MULTI_TOKEN}-{prediction.horizon}{decayed}{within}{normalised}"
    values = {
        "data": data,
        "out": config.folder / (name if prediction.horizon else NEXT_ITEM),
        "protocol": config.protocol,
        "seed": config.seed,
        "epochs": config.epochs,
        "decoder.width": config.width,
        "decoder.dropout": config.dropout,
    }
    if prediction.horizon:
        values |= {
            "multi-token.horizon": prediction.horizon,
            "multi-token.seconds": prediction.seconds,
            "multi-token.half-life": prediction.half_life,
            "multi-token.half-life-unit": prediction.half_life_unit,
        }
    arguments = [part for option, value in values.items() for part in (f"--{option}", str(value))]
    normalise = ["--multi-token.normalise"] if prediction.horizon and prediction.normalise else []
    return [*arguments, *normalise, *shlex.split(config.pretrain)]
