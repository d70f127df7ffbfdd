"""Speed of training: `python -m benchmarks.training --part pretrain`, or `--part cotrain`.

    pretrain   Marquee's training step against a plain PyTorch implementation of the same model and loss
    cotrain    a ranker's step on request rows against one on impression rows; a job in one process and in two

Before anything is timed, both take the same steps from the same weights on the same batches; where losses or gradients
differ, the command ends with status 1 and no speeds. The last line is one JSON document.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.cotraining_speed import CotrainingSpeed, measure_cotraining
from benchmarks.environment import stamp
from benchmarks.impression_rows import ImpressionSpeed
from benchmarks.pretraining_speed import PretrainingSpeed, measure_pretraining
from benchmarks.report import environment_lines
from benchmarks.stations import Stations
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.home import home
from foundation.sources.movielens import write_movielens
from serving.threads import available_cores

Part = Literal["pretrain", "cotrain"]


@dataclass(frozen=True)
class TrainingSpeedConfig:
    """Times training steps of Marquee and of a plain implementation, taking turns.

    Attributes:
        part: what is trained.
        data: dataset folder; without it MovieLens-1M, fetched where it isn't yet.
        blocks: rounds of the two variants' rotation.
        steps: timed in each block, after one that is not.
        tokens_per_batch: real tokens of a step of pre-training.
        requests: of a step of co-training; of a step and process, in two of them.
        candidates: of such a request.
        rounds: jobs with one process, and as many with two, of co-training.
        threads: of this process; 0 for all available cores.
        seed: of weights, windows and batches.
        json: print the JSON document alone.
    """

    part: Part
    data: Path | None = None
    blocks: int = 12
    steps: int = 8
    tokens_per_batch: int = 3_000
    requests: int = 64
    candidates: int = 20
    rounds: int = 3
    threads: int = 0
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("blocks", 1),
            ("steps", 1),
            ("tokens_per_batch", 1),
            ("requests", 2),
            ("candidates", 5),
            ("rounds", 1),
            ("threads", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                shown = f"--{name.replace('_', '-')} is {getattr(self, name)}"
                raise DataError(f"{shown}; it must be at least {least}")


Measured = dict[str, Any]


def _pretrain(config: TrainingSpeedConfig, dataset: Dataset, say: Callable[[str], object]) -> Measured:
    speed = PretrainingSpeed(config.blocks, config.steps, config.tokens_per_batch, config.seed)
    return measure_pretraining(speed, dataset, say)


def _cotrain(config: TrainingSpeedConfig, dataset: Dataset, say: Callable[[str], object]) -> Measured:
    impressions = ImpressionSpeed(
        config.blocks, config.steps, config.requests, config.candidates, config.seed
    )
    # The jobs' own output is progress: it goes where their progress bars go.
    stations = Stations(sys.stderr)
    return measure_cotraining(CotrainingSpeed(impressions, config.rounds), dataset, stations, say)


PARTS: dict[Part, Callable[[TrainingSpeedConfig, Dataset, Callable[[str], object]], Measured]] = {
    "pretrain": _pretrain,
    "cotrain": _cotrain,
}


def measure(config: TrainingSpeedConfig, say: Callable[[str], object]) -> Measured:
    """Everything the command reports, as the JSON document."""
    torch.set_num_threads(config.threads or available_cores())
    dataset = load_dataset(config.data) if config.data else _movielens(say)
    # Before the measurement: afterwards the load average would be our own.
    environment = stamp()
    say("\n".join(environment_lines(environment)))
    return {
        "benchmark": "training",
        "part": config.part,
        "data": str(dataset.folder),
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
        "environment": environment,
        **PARTS[config.part](config, dataset, say),
    }


def _movielens(say: Callable[[str], object]) -> Dataset:
    return write_movielens(home() / "data" / "movielens-1m", "1m", say)


def table(report: Measured) -> str:
    """The figures for people."""
    if report["refused"]:
        return "\n".join(f"{name}: {reason}" for name, reason in report["refused"].items())
    lines = _cotrain_lines(report) if report["part"] == "cotrain" else _pretrain_lines(report)
    for name, ratio in report["ratios"].items():
        low, high = report["ci95"][name]
        lines.append(f"{name}: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    return "\n".join(lines)


def _pretrain_lines(report: Measured) -> list[str]:
    lines = [f"\n{'':10}{'tokens/s':>12}{'tokens/step':>14}{'padding':>10}"]
    for name, rate in report["tokens_per_s"].items():
        tokens, padding = report["tokens_per_step"][name], report["padding_share"][name]
        lines.append(f"{name:10}{rate:12,.0f}{tokens:14,.0f}{padding:10.1%}")
    return lines


def _cotrain_lines(report: Measured) -> list[str]:
    lines = [f"\n{'':18}{'candidates/s':>14}{'bytes/batch':>14}"]
    for name, rate in report["candidates_per_s"].items():
        lines.append(f"{name:18}{rate:14,.0f}{report['bytes_per_batch'][name]['model_inputs']:14,}")
    for number, rates in report["processes_candidates_per_s"].items():
        lines.append(f"{number + ' process(es)':18}{np.median(rates):14,.0f}")
    return lines


def main() -> None:
    """The command."""
    config = tyro.cli(TrainingSpeedConfig, prog="python -m benchmarks.training")
    with ExitStack() as stack:
        out = stack.enter_context(Path(os.devnull).open("w")) if config.json else sys.stdout
        say = Stations(out).say
        report = measure(config, say)
        say(table(report))
    print(json.dumps(report))
    if report["refused"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
