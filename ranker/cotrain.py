"""Co-train a ranker: `torchrun --nproc-per-node=N -m ranker.cotrain --data DIR --release DIR --out DIR`.

Plain `python -m ranker.cotrain …` is N = 1. Under --out: `rows/` (request rows, unless --rows names some), `run.json`
(what the run was started with), `plan.json` (where tables are), `checkpoints/`, `tensorboard/`, and at the end
`test_requests.parquet` (AUC of each test request), `metrics.json`, `plots/` and `ranker/`. Started again after a kill,
the run goes on from its last checkpoint to the same weights, bit for bit, with as many processes and threads; a
finished run does nothing but say so. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import tyro

from foundation.atomic import atomic_file
from foundation.distributed import by_first_rank
from foundation.errors import DataError, run_command
from foundation.manifest import Manifest
from foundation.release import load_release
from foundation.run_record import RECORD, keep_record, sole_run
from ranker.artifact import TrainedRanker, save_ranker
from ranker.evaluation.evaluation import DUMP, write_request_auc
from ranker.evaluation.plots import plot_calibration, plot_steps
from ranker.rows.folder import RowFolder
from ranker.training.cotrain_config import CotrainConfig
from ranker.training.cotraining import Cotraining
from ranker.training.report import STEPS_PER_MEASURE, Report
from ranker.training.run_rows import rows_of_run
from ranker.training.sharding import process_group

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
        DataError: data, rows, release or settings are wrong, or don't fit each other or an earlier start.
    """
    release = load_release(config.release)
    rows = rows_of_run(config, release)
    settings = _settings(config, rows)
    if (config.out / RECORD).exists():
        keep_record(config.out, settings)
    if (config.out / "ranker").exists():
        if dist.get_rank() == 0:
            print(f"{config.out}: this run is finished; its ranker is {config.out / 'ranker'}", flush=True)
        return json.loads((config.out / "metrics.json").read_text(encoding="utf-8"))
    run = Cotraining(config, rows, release)
    # Only now: settings that don't fit the release leave nothing that their correction would not fit.
    keep_record(config.out, settings)
    try:
        _train(run)
    except DataError as error:
        # A row group may go bad for one rank alone: the others then know nothing but that it is gone.
        if dist.get_rank():
            print(f"error: process {dist.get_rank()}: {error}", file=sys.stderr, flush=True)
        raise
    skipped, document = run.all_skipped(), {}
    run.gather()
    by_first_rank(lambda: document.update(_finish(run, release.manifest, skipped)))
    return document


def _settings(config: CotrainConfig, rows: RowFolder) -> dict[str, Any]:
    """All that a run's weights come from, as plain values; the tasks, whose order matters, by number from 1."""
    settings = asdict(config)
    # How rows were made, they say themselves; the rest changes nothing of what is trained.
    for irrelevant in ("out", "checkpoint_every", "data", "rows", "requests", "logged", "draws", "workers"):
        del settings[irrelevant]
    manifest = rows.manifest
    tasks = {str(number): asdict(task) for number, task in enumerate(rows.tasks, start=1)}
    made = {name: value for name, value in manifest.settings.items() if name != "tasks"}
    of_rows = {"made": made, "tasks": tasks, "rows": manifest.hash, "release": manifest.release.version}
    return settings | of_rows


def _train(run: Cotraining) -> None:
    """Takes all steps that are still to take."""
    config, done, steps_per_epoch = run.config, run.resume(), run.plan.steps_per_epoch
    with ExitStack() as stack:
        stack.enter_context(run.checkpoints)
        report = None
        if dist.get_rank() == 0:
            report = Report(run, done, stack)
        batches = stack.enter_context(run.batches(done))
        for step, batch in enumerate(batches, start=done):
            started_s = time.perf_counter()
            means = run.train_on(step, batch)
            seconds = time.perf_counter() - started_s
            run.work[2] += seconds
            measured = run.trainer.windowed.compute() if (step + 1) % STEPS_PER_MEASURE == 0 else {}
            if report is not None:
                report.step(step, means, seconds, batch)
                report.measured(step, measured)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == run.num_steps:
                run.save(step + 1)
            if (step + 1) % steps_per_epoch == 0:
                run.gather()
                by_first_rank(None if report is None else partial(report.epoch, step // steps_per_epoch))


def _finish(run: Cotraining, release: Manifest, skipped: dict[str, int]) -> dict[str, Any]:
    """Tests the gathered ranker on rank 0 and writes what the run is for; the document."""
    config, out = run.config, run.config.out
    rows = run.folder.read_all("test")
    evaluation = run.evaluate(rows)
    first_task = run.tasks[0].name
    found = evaluation.to_json()
    document = {
        "ranker": str(out / "ranker"),
        "tower": config.ranker.tower,
        "task": first_task,
        **found["tasks"][first_task],
        **found,
        "steps": run.num_steps,
        "epochs": config.num_epochs,
        **run.throughput(),
        "skipped_requests": sum(skipped.values()),
        "skipped": skipped,
        "processes": dist.get_world_size(),
        "threads": torch.get_num_threads(),
        "protocol": PROTOCOL,
    }
    write_request_auc(out / DUMP, rows, evaluation)
    plot_calibration(out / "plots", evaluation.curves)
    plot_steps(out / "plots", out / "tensorboard")
    with atomic_file(out / "metrics.json") as unfinished:
        unfinished.write_text(json.dumps(document, indent=1), encoding="utf-8")
    # Last: a run whose ranker is there is finished.
    figures = {
        f"{task}_{name}": float(value)
        for task, metrics in evaluation.metrics.items()
        for name, value in metrics.items()
        if not math.isnan(value)
    }
    trained = TrainedRanker(run.whole, run.features, run.tasks, run.log_rates)
    save_ranker(out / "ranker", trained, release, figures)
    return document


def main() -> None:
    """The command."""
    config = tyro.cli(CotrainConfig, prog="python -m ranker.cotrain", config=(tyro.conf.OmitArgPrefixes,))
    with process_group() as (rank, _):
        try:
            with sole_run(config.out):
                document = cotrain(config)
        except DataError:
            # Every rank meets the same error; one of them says so.
            if rank:
                raise SystemExit(2) from None
            raise
    if rank == 0:
        # Slices and modes fill pages: they are for metrics.json.
        print(
            json.dumps({name: value for name, value in document.items() if name not in ("slices", "modes")})
        )


if __name__ == "__main__":
    run_command(main)
