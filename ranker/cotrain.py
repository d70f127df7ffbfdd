"""Co-train a ranker: `torchrun --nproc-per-node=N -m ranker.cotrain --data DIR --release DIR --out DIR`.

Plain `python -m ranker.cotrain …` is N = 1. Under --out: `run.json` (what the run was started with),
`checkpoints/`, `tensorboard/`, and at the end `test_requests.parquet` (AUC of each test request),
`metrics.json` and `ranker/`. Started again after a kill, the run goes on from its last checkpoint to the same
weights, bit for bit, in one process with the same number of threads; a finished run does nothing but say so.
The last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torch.utils.tensorboard import SummaryWriter

from foundation.atomic import atomic_file
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.manifest import Manifest, file_hash
from foundation.progress import Progress
from foundation.release import check_cut, check_dataset, load_release
from foundation.run_record import data_hash, keep_record
from ranker.artifact import TrainedRanker, save_ranker
from ranker.evaluation.evaluation import DUMP, write_request_auc
from ranker.requests.logged import FILE
from ranker.schema import are_logged, load_tasks
from ranker.training.cotraining import CotrainConfig, Cotraining
from ranker.training.sharding import process_group

STEPS_PER_CURVE_POINT = 10
VALIDATION_REQUESTS_PER_PROFILE = 2
PROTOCOL = (
    "requests behind the cut of test profiles, events ordered by (profile, timestamp), stable in file order; gauc and "
    "ndcg@10 are means over requests with a positive and a negative (ndcg: a positive)"
)


def cotrain(config: CotrainConfig) -> dict[str, Any]:
    """Runs, resumes or reports a run; every rank must call it, within a process group.

    Returns:
        The JSON document of the last line: figures of the first task and of all, throughput, the folder
        written.

    Raises:
        DataError: data, release or settings are wrong, or don't fit each other or an earlier start.
    """
    dataset = load_dataset(config.data)
    release = load_release(config.release)
    check_dataset(release, dataset)
    check_cut(release, dataset)
    keep_record(config.out, _settings(config, dataset, release.manifest))
    if (config.out / "ranker").exists():
        if dist.get_rank() == 0:
            print(f"{config.out}: this run is finished; its ranker is {config.out / 'ranker'}", flush=True)
        return json.loads((config.out / "metrics.json").read_text(encoding="utf-8"))
    run = Cotraining(config, dataset, release)
    _train(run)
    return _finish(run, release.manifest)


def _settings(config: CotrainConfig, dataset: Dataset, release: Manifest) -> dict[str, Any]:
    """All that a run's weights come from, as plain values; the tasks, whose order matters, by number from 1."""
    tasks = load_tasks(dataset.folder / "schema.toml")
    settings = asdict(config) | {"data": data_hash(dataset), "release": release.version}
    settings["tasks"] = {str(number): asdict(task) for number, task in enumerate(tasks, start=1)}
    if are_logged(tasks):
        logged = dataset.folder / FILE
        if not logged.is_file():
            raise DataError(f"{logged}: not found; the tasks of schema.toml are columns of it")
        settings[FILE] = file_hash(logged)
    for irrelevant in ("out", "checkpoint_every"):
        del settings[irrelevant]
    return settings


def _train(run: Cotraining) -> None:
    """Takes all steps that are still to take."""
    config, done = run.config, run.resume()
    with ExitStack() as stack:
        stack.enter_context(run.checkpoints)
        report = None
        if dist.get_rank() == 0:
            report = Report(run, done, stack)
        for epoch in range(done // run.steps_per_epoch, config.num_epochs):
            requests = run.epoch_requests(epoch)
            first = epoch * run.steps_per_epoch
            for step in range(max(done, first), first + run.steps_per_epoch):
                batch = run.batch(requests, step - first)
                started_s = time.perf_counter()
                means = run.train_on(step, batch)
                seconds = time.perf_counter() - started_s
                amounts = (len(batch.profile), len(batch.candidate_id))
                run.work += torch.tensor([*amounts, seconds], dtype=torch.float64)
                if report is not None:
                    report.step(step, means, seconds, amounts)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == run.num_steps:
                    run.save(step + 1)
            if run.gather() and report is not None:
                report.epoch(epoch)


class Report:
    """What rank 0 shows of a run while it trains: progress on stderr, curves in TensorBoard."""

    def __init__(self, run: Cotraining, done: int, stack: ExitStack) -> None:
        self.run = run
        self.curves = stack.enter_context(SummaryWriter(run.config.out / "tensorboard", purge_step=done))
        self.progress = stack.enter_context(Progress(run.num_steps, done))
        self.losses = run.trainer.loss_names
        self.validation = run.held_out("validation", VALIDATION_REQUESTS_PER_PROFILE)
        self.progress.say(
            f"{run.config.ranker.tower} tower · {run.config.num_epochs} epochs · {run.num_steps:,} steps of "
            f"{run.batch_size} requests · {dist.get_world_size()} processes · {torch.get_num_threads()} threads"
            + (f" · going on after step {done:,}" if done else "")
        )

    def step(self, step: int, means: torch.Tensor, seconds: float, amounts: tuple[int, int]) -> None:
        """One optimizer step: its mean losses, time, and requests and candidates."""
        loss = self.run.trainer.total(means)
        self.progress.step(step + 1, loss, seconds, requests=amounts[0], candidates=amounts[1])
        if step % STEPS_PER_CURVE_POINT:
            return
        self.curves.add_scalar("training/loss", loss, step)
        for name, value in zip(self.losses, means.tolist(), strict=True):
            self.curves.add_scalar(f"training/loss_{name}", value, step)
        for name, rate in self.run.config.optim.rates(step, self.run.num_steps).items():
            self.curves.add_scalar(f"training/learning_rate_{name}", rate, step)
        for name, rate in self.progress.rates().items():
            self.curves.add_scalar(f"training/{name}_per_s", rate, step)

    def epoch(self, epoch: int) -> None:
        """Metrics on the validation profiles after an epoch."""
        step = (epoch + 1) * self.run.steps_per_epoch
        figures = []
        for task, metrics in self.run.evaluate(self.validation).metrics.items():
            for name, value in metrics.items():
                self.curves.add_scalar(f"validation/{task}_{name}", value, step)
            figures.append(f"{task} auc {metrics['auc']:.4f} gauc {metrics['gauc']:.4f}")
        self.progress.say(
            f"epoch {epoch + 1}/{self.run.config.num_epochs} · validation {' · '.join(figures)}"
        )


def _finish(run: Cotraining, release: Manifest) -> dict[str, Any]:
    """Tests the trained ranker and writes what the run is for; the document on rank 0, else empty."""
    if not run.gather():
        return {}
    config, out = run.config, run.config.out
    requests = run.held_out("test")
    evaluation = run.evaluate(requests)
    first_task = run.tasks[0].name
    document = {
        "ranker": str(out / "ranker"),
        "tower": config.ranker.tower,
        "task": first_task,
        **_without_nan(evaluation.metrics[first_task]),
        "tasks": {task: _without_nan(metrics) for task, metrics in evaluation.metrics.items()},
        "steps": run.num_steps,
        "epochs": config.num_epochs,
        **run.throughput(),
        "processes": dist.get_world_size(),
        "threads": torch.get_num_threads(),
        "protocol": PROTOCOL,
    }
    write_request_auc(out / DUMP, run.rows(requests), evaluation)
    with atomic_file(out / "metrics.json") as partial:
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
    # Last: a run whose ranker is there is finished.
    figures = {
        f"{task}_{name}": float(value)
        for task, metrics in evaluation.metrics.items()
        for name, value in _without_nan(metrics).items()
        if value is not None
    }
    save_ranker(out / "ranker", TrainedRanker(run.whole, run.features, run.tasks), release, figures)
    return document


def _without_nan(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a figure that is not defined is null."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def main() -> None:
    """The command."""
    config = tyro.cli(CotrainConfig, prog="python -m ranker.cotrain", config=(tyro.conf.OmitArgPrefixes,))
    with process_group() as (rank, _):
        try:
            document = cotrain(config)
        except DataError:
            # Every rank meets the same error; one of them says so.
            if rank:
                raise SystemExit(2) from None
            raise
    if rank == 0:
        print(json.dumps(document))


if __name__ == "__main__":
    run_command(main)
