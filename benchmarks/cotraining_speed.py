"""Speed of co-training: request rows against impression rows, and two processes against one.

The decoder starts from random weights, whose speed is that of any others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.impression_rows import ImpressionSpeed, measure_impressions
from benchmarks.stations import Stations
from benchmarks.two_processes import ProcessesSpeed, measure_processes
from foundation.dataset import Dataset
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig
from foundation.pretraining import build_model
from foundation.release import load_release, save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from ranker.training.sharding import process_group


@dataclass(frozen=True)
class CotrainingSpeed:
    """How long to measure.

    Attributes:
        impressions: request rows against impression rows.
        rounds: jobs with one process, and as many with two.
    """

    impressions: ImpressionSpeed
    rounds: int


def measure_cotraining(
    config: CotrainingSpeed, dataset: Dataset, stations: Stations, say: Callable[[str], object]
) -> dict[str, Any]:
    """The measured part of the report."""
    with tempfile.TemporaryDirectory(prefix="marquee-cotraining-") as name:
        folder, impressions = Path(name), config.impressions
        write_release(folder / "release", dataset, impressions.seed)
        with process_group():
            found = measure_impressions(impressions, dataset, load_release(folder / "release"), say)
        rows = folder / "rows"
        stations.run(
            "make rows",
            "ranker.features",
            *("--data", dataset.folder, "--release", folder / "release", "--out", rows, "--draws", 1),
            *("--candidates", impressions.candidates, "--per-profile", 1, "--seed", impressions.seed),
        )
        jobs = ProcessesSpeed(rows, folder / "release", folder, config.rounds, impressions.requests)
        processes = measure_processes(jobs, stations)
    merged = {name: {**found.get(name, {}), **processes[name]} for name in ("ratios", "ci95")}
    refused = {**found["refused"], **processes["processes_refused"]}
    return {**found, **processes, **merged, "refused": refused}


def write_release(folder: Path, dataset: Dataset, seed: int) -> None:
    """A release of the default sizes that nothing was trained for."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
    model = build_model(FoundationConfig(), tokenizer, dataset)
    save_release(folder, model, tokenizer, training_data_of(dataset), {})
