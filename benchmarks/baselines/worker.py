"""The process of one variant: answers what `benchmarks.baselines.protocol` says, until its stdin ends."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.baselines.protocol import answer, own_streams
from benchmarks.baselines.variants import make_variant


@dataclass(frozen=True)
class WorkerConfig:
    """What the process is.

    Attributes:
        variant: name in `benchmarks.baselines.variants`.
        threads: to compute with.
        folder: an existing one, for what the variant writes.
    """

    variant: str
    threads: int
    folder: Path


def main(config: WorkerConfig) -> None:
    """Serve one parent."""
    words, answers = own_streams()
    torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore")  # of exporters, about themselves; the log is for what went wrong
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    variant = make_variant(config.variant, config.threads, config.folder)
    answer(variant.load, words, answers)


if __name__ == "__main__":
    main(tyro.cli(WorkerConfig))
