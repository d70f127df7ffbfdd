"""Co-training in one process on one core, and in two processes on two, each with one thread: the same job and losses.

Shapes: S logged steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.percentiles import ratio_of_medians
from benchmarks.stations import Stations
from ranker.evaluation.plots import read_curves

TOLERANCE = 1e-3
"""Of the relative difference between the losses of a step. Sums over two processes are taken in another order; AdamW
divides by what is near zero for many weights, so that rounding grows from 1e-7 at the first step to 1e-4 after 80."""
LOSS, RATE = "training/loss", "training/requests_per_s"
EPOCHS = 2
"""Of a job: 80 steps on MovieLens-1M."""


@dataclass(frozen=True)
class ProcessesSpeed:
    """What is trained, and how often.

    Attributes:
        rows: folder of request rows.
        release: that the rows were made for.
        out: new folder for the runs.
        rounds: jobs with either number of processes.
        requests: of a step and process; a step has as many for two processes, also where there is one.
    """

    rows: Path
    release: Path
    out: Path
    rounds: int
    requests: int


def measure_processes(config: ProcessesSpeed, stations: Stations) -> dict[str, Any]:
    """Candidates per second of each number of processes, their ratio, and how far their losses are apart."""
    per_candidate: dict[int, list[list[float]]] = {1: [], 2: []}
    curves: dict[int, NDArray[np.float64]] = {}
    for number in range(config.rounds):
        # The other order every second round: what slows the machine down meanwhile meets both.
        for processes in (1, 2) if number % 2 == 0 else (2, 1):
            out = config.out / f"{processes}-processes-{number}"
            with _one_thread(), _cores(processes):
                document = _train(config, stations, processes, out)
            per_request = document["candidates_per_s"] / document["requests_per_s"]
            per_candidate[processes].append([1 / (per_request * steady_rate(out / "tensorboard"))])
            curves[processes] = loss_curve(out / "tensorboard")
    differences = np.abs(curves[2] / curves[1] - 1)
    difference = float(np.max(differences))
    ratio = ratio_of_medians(per_candidate[1], per_candidate[2])
    speeds = {str(n): [round(1 / seconds, 1) for [seconds] in each] for n, each in per_candidate.items()}
    return {
        "processes_candidates_per_s": speeds,
        "processes_loss_difference": {"first_step": float(differences[0]), "largest": difference},
        "processes_refused": {} if difference <= TOLERANCE else {"2": f"losses differ by {difference:.1e}"},
        "ratios": {"two_processes_vs_one": round(ratio.value, 3)},
        "ci95": {"two_processes_vs_one": [round(ratio.low, 3), round(ratio.high, 3)]},
    }


def loss_curve(folder: Path) -> NDArray[np.float64]:
    """Total losses `[S]` that a run has logged."""
    return np.array([value for _, value in read_curves(folder)[LOSS]])


def steady_rate(folder: Path) -> float:
    """Requests per second of training step once a run is warm: from the second logged step to the last.

    The run logs means from its start on, which say how long it has trained: steps so far over steps per second.
    """
    steps, rates = np.array(read_curves(folder)[RATE][1:]).T
    seconds = (steps + 1) / rates
    return float((steps[-1] - steps[0]) / (seconds[-1] - seconds[0]))


def _train(config: ProcessesSpeed, stations: Stations, processes: int, out: Path) -> dict[str, Any]:
    """A job without dropout, whose random numbers are each process' own."""
    arguments = (
        *("--rows", config.rows, "--release", config.release, "--out", out, "--epochs", EPOCHS),
        *("--dropout", 0, "--requests-per-batch", 2 * config.requests),
    )
    title = f"co-train in {processes} process{'es' * (processes > 1)}"
    if processes == 1:
        return stations.run(title, "ranker.cotrain", *arguments)
    launcher = ("--standalone", "--nproc-per-node", processes, "-m", "ranker.cotrain")
    return stations.run(title, "torch.distributed.run", *launcher, *arguments)


@contextmanager
def _cores(number: int) -> Iterator[None]:
    """So many cores for the jobs that are started meanwhile: threads that read ahead have none of their own either."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(available)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For the jobs that are started meanwhile."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
