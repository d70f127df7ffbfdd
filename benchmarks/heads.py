"""What auxiliary heads learn, and what they cost the next item: `python -m benchmarks.heads`.

On the synthetic world: the same model with heads and without, pre-trained from several seeds by the commands printed;
a finished run is reused. On the test profiles, which no run has seen, each head is held against predicting how
frequent its classes were in training, and the next item of the runs with heads against that of those without. The
last line is one JSON document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.environment import stamp
from benchmarks.held_out_losses import ITEM_METRICS, HeldOut, difference, held_out
from benchmarks.report import environment_lines
from benchmarks.stations import StationFailed, Stations
from foundation.dataset import Dataset
from foundation.errors import DataError, run_command
from foundation.home import home
from foundation.release import load_release
from foundation.sources.folder import summary
from foundation.sources.synthetic import write_synthetic
from foundation.sources.synthetic_world import SyntheticConfig

Document = dict[str, Any]
Run = Callable[..., Document]
"""Runs a command: (title, module, *arguments) to the JSON document it ends with, as `Stations.run`."""


@dataclass(frozen=True)
class HeadsConfig:
    """Pre-trains with and without heads, and compares.

    Attributes:
        out: folder of the world and of all runs; default: $MARQUEE_HOME/runs/heads.
        profiles, items, sessions, world_seed: of the synthetic world.
        heads: what else each token predicts (`foundation.objectives.labels`). Not entity_type: in this world nobody
            prefers one, so there is nothing to learn of it.
        head_weight: of their losses against the item's.
        seeds: how many, from 0; each makes a run with heads and one without.
        epochs, width, layers: as in foundation.pretrain.
    """

    out: Path | None = None
    profiles: int = 4_000
    items: int = 300
    sessions: int = 25
    world_seed: int = 0
    heads: tuple[str, ...] = (
        "next.device",
        "next.gap",
        "action",
        "duration",
        "audio_languages",
        "languages",
        "genres",
    )
    head_weight: float = 0.005
    seeds: int = 3
    epochs: int = 6
    width: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise DataError(f"--seeds is {self.seeds}; it must be at least 1")
        if not self.heads:
            raise DataError("--heads is empty; it must name what heads predict, as next.device")

    @property
    def folder(self) -> Path:
        """Of the world and of all runs."""
        return self.out or home() / "runs" / "heads"

    @property
    def world(self) -> SyntheticConfig:
        """The synthetic world."""
        return SyntheticConfig(self.profiles, self.items, self.sessions, seed=self.world_seed)


def measure(config: HeadsConfig, run: Run, say: Callable[[str], object]) -> Document:
    """Runs what isn't finished; returns the closing document.

    Raises:
        DataError: the folder holds runs of other settings.
        StationFailed: a command failed; it has said why.
    """
    dataset = write_synthetic(config.folder / "data", config.world)
    # Before the training: afterwards the load average would be our own.
    environment = stamp()
    say("\n".join(environment_lines(environment)))
    with_heads, without = [], []
    for seed in range(config.seeds):
        with_heads.append(_held_out(config, dataset, run, seed, config.heads))
        without.append(_held_out(config, dataset, run, seed, ()))
    first = next(iter(with_heads[0].item.values()))
    return {
        "benchmark": "heads",
        "heads": {name: _head(name, with_heads) for name in config.heads},
        "item": {name: _item(name, with_heads, without) for name in ITEM_METRICS},
        "world": summary(dataset),
        "tested": {"profiles": len(first), "events": int(first[:, 1].sum())},
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
        "environment": environment,
    }


def _held_out(config: HeadsConfig, dataset: Dataset, run: Run, seed: int, heads: Sequence[str]) -> HeldOut:
    """Held-out figures of one run, which is pre-trained first where it isn't yet."""
    name = f"{'with' if heads else 'without'}-{seed}"
    arguments: list[object] = ["--data", dataset.folder, "--out", config.folder / name, "--seed", seed]
    arguments += ["--epochs", config.epochs]
    arguments += ["--decoder.width", config.width, "--decoder.num-layers", config.layers]
    if heads:
        arguments += ["--head-weight", config.head_weight, "--heads", *heads]
    trained = run(f"pre-train, {name.replace('-', ' heads, seed ')}", "foundation.pretrain", *arguments)
    return held_out(load_release(Path(trained["release"])), dataset)


def _head(name: str, runs: Sequence[HeldOut]) -> Document:
    """One head against its marginals, the mean of all seeds."""
    ours = _mean([each.heads[name] for each in runs])
    lower, ci95 = difference(ours, runs[0].marginals[name])
    return {
        "loss": _pooled(ours),
        "marginal_loss": runs[0].marginal_loss[name],
        "difference": lower,
        "ci95": ci95,
        "beats_marginals": ci95[1] < 0,
        "labelled_tokens": int(ours[:, 1].sum()),
        "loss_by_seed": [_pooled(each.heads[name]) for each in runs],
    }


def _item(name: str, with_heads: Sequence[HeldOut], without: Sequence[HeldOut]) -> Document:
    """One metric of the next item with heads against without, paired by profile, the mean of all seeds."""
    ours, theirs = (_mean([each.item[name] for each in runs]) for runs in (with_heads, without))
    gain, ci95 = difference(ours, theirs)
    pairs = zip(with_heads, without, strict=True)
    return {
        "with": _pooled(ours),
        "without": _pooled(theirs),
        "difference": gain,
        "ci95": ci95,
        "difference_by_seed": [_pooled(a.item[name]) - _pooled(b.item[name]) for a, b in pairs],
    }


def _mean(seeds: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Counts are those of the same tokens in every run."""
    return np.mean(seeds, axis=0)


def _pooled(sums: NDArray[np.float64]) -> float:
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def table(report: Document) -> str:
    """The figures for people."""
    lines = [f"\n{'cross entropy, nats':22}{'head':>9}{'marginals':>11}{'difference':>12}"]
    for name, head in report["heads"].items():
        verdict = "" if head["beats_marginals"] else "  doesn't beat its marginals"
        lines.append(
            f"{name:22}{head['loss']:9.4f}{head['marginal_loss']:11.4f}{head['difference']:+12.4f} "
            f"{_interval(head['ci95'])}{verdict}"
        )
    lines.append(f"\n{'next item':22}{'with':>9}{'without':>11}{'difference':>12}")
    for name, item in report["item"].items():
        by_seed = " ".join(f"{each:+.4f}" for each in item["difference_by_seed"])
        lines.append(
            f"{name:22}{item['with']:9.4f}{item['without']:11.4f}{item['difference']:+12.4f} "
            f"{_interval(item['ci95'])}  by seed {by_seed}"
        )
    tested = report["tested"]
    lines.append(
        f"\n{tested['events']:,} events of {tested['profiles']:,} test profiles; means of "
        f"{report['settings']['seeds']} seeds; 95 % intervals over profiles"
    )
    return "\n".join(lines)


def _interval(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:+.4f}, {bounds[1]:+.4f}]"


def main() -> None:
    """The command."""
    config = tyro.cli(HeadsConfig, prog="python -m benchmarks.heads")
    stations = Stations()
    try:
        report = measure(config, stations.run, stations.say)
    except StationFailed as failure:
        print(f"error: {failure}; the command above says why", file=sys.stderr)
        raise SystemExit(1) from None
    stations.say(table(report))
    print(json.dumps(report))


if __name__ == "__main__":
    run_command(main)
