"""Pre-train a foundation model: `python -m foundation.pretrain --data DIR --out DIR`.

On several processes: `torchrun --nproc-per-node=N -m foundation.pretrain …`, where N divides `--parts`.

Under --out: `run.json` (what the run was started with), `checkpoints/`, `best/` (with --patience),
`tensorboard/`, and at the end `release/`. Started again after a kill, the run goes on from its last checkpoint
to the same weights, bit for bit, given the same number of processes and threads (to rounding with another
number); a finished run does nothing but say so. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
import tyro
from torch.utils.tensorboard import SummaryWriter

from foundation.dataset import load_dataset
from foundation.distributed import check_parts, first_rank_says, is_first_rank, process_group, world_size
from foundation.errors import DataError, run_command
from foundation.library_notices import library_notices_off
from foundation.manifest import training_data_of
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.progress import Progress
from foundation.release import read_manifest, save_release
from foundation.run_record import RECORD, data_hash, keep_record, sole_run

STEPS_PER_CURVE_POINT = 10


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Runs, resumes or reports a run; every process of a process group must call it.

    Returns:
        The JSON document of the last line: release, steps, epochs (and best_epoch, with early stopping), loss,
        training_s, tokens_per_s, padding_share, validation figures of the weights released.

    Raises:
        DataError: parts that the processes can't share, wrong data, settings that the data refuse or other than
            those of an earlier start, or a damaged release.
    """
    check_parts(config.batch.parts)
    dataset = load_dataset(config.data, config.protocol)
    settings = asdict(config) | {"data": data_hash(dataset)}
    for irrelevant in ("out", "checkpoint_every"):
        del settings[irrelevant]
    release = config.out / "release"
    is_finished = bool(first_rank_says(release.exists()))
    if is_finished and not first_rank_says((config.out / RECORD).exists()):
        raise DataError(
            f"{release}: is there already, and no {RECORD} beside it says what it was trained with; "
            "choose another --out"
        )
    # Before the record: settings that the data refuse must not bind the start that sets them right.
    run = None if is_finished else Pretraining(config, dataset)
    keep_record(config.out, settings)
    if run is None:
        if is_first_rank():
            print(f"{config.out}: this run is finished; its release is {release}", flush=True)
        return {"release": str(release), **read_manifest(release).metrics}
    _train(run)
    metrics = _figures(run)
    if is_first_rank():
        heads = run.trainer.objective.heads
        save_release(release, run.trainer.model, run.tokenizer, training_data_of(dataset), metrics, heads)
    return {"release": str(release), **metrics}


def _train(run: Pretraining) -> None:
    """Takes all steps that are still to take."""
    done = run.resume()
    with ExitStack() as stack:
        report = Report(run, done, stack) if is_first_rank() else None
        while not run.validation.is_over:
            # An epoch is over once it is validated, however far its steps had got before a kill.
            epoch = int(run.validation.num_epochs)
            _train_epoch(run, epoch, done, report)
            done = int(run.steps_before[epoch + 1])
            figures = run.end_epoch()
            if report is not None:
                report.epoch(epoch, figures)


def _train_epoch(run: Pretraining, epoch: int, done: int, report: Report | None) -> None:
    """The steps of `epoch` after step `done`, with checkpoints; its end is `Pretraining.end_epoch`'s to save."""
    first, last = (int(step) for step in run.steps_before[epoch : epoch + 2])
    for step, batch in enumerate(run.batches(epoch)[done - first :], start=done):
        if step == first:
            run.epoch_loss.zero_()
        started_s = time.perf_counter()
        loss = run.trainer.step(step, run.tokenizer, run.events, batch)
        seconds = time.perf_counter() - started_s
        run.epoch_loss += torch.tensor([loss, 1.0], dtype=torch.float64)
        run.work += torch.tensor([batch.num_tokens, seconds], dtype=torch.float64)
        if report is not None:
            report.step(step, loss, seconds, batch.num_tokens)
        if (step + 1) % run.config.checkpoint_every == 0 and step + 1 < last:
            run.save(step + 1)


def _figures(run: Pretraining) -> dict[str, float]:
    """What the finished run reports, after its weights to release are loaded."""
    validation, released = run.validation, run.load_released()
    epochs = int(validation.num_epochs)
    best = {"best_epoch": released + 1} if run.config.early_stopping.patience else {}
    return {
        "steps": int(run.steps_before[epochs]),
        "epochs": epochs,
        **best,
        "loss": run.mean_loss,
        **run.throughput(),
        "padding_share": run.padding_share,
        **{f"validation_{name}": value for name, value in validation.figures(released).items()},
    }


class Report:
    """What rank 0 shows of a run while it trains: progress on stderr, curves in TensorBoard."""

    def __init__(self, run: Pretraining, done: int, stack: ExitStack) -> None:
        self.run = run
        self.curves = stack.enter_context(SummaryWriter(run.config.out / "tensorboard", purge_step=done))
        padding = f"{100 * run.padding_share:.1f} % padding"
        self.progress = stack.enter_context(Progress(run.num_steps, done, padding))
        self.progress.say(
            f"{len(run.histories.num_events):,} training profiles · {run.config.epochs} epochs · "
            f"{run.num_steps:,} steps · {padding} · {world_size()} processes · {torch.get_num_threads()} threads"
            + (f" · going on after step {done:,}" if done else "")
        )

    def step(self, step: int, loss: float, seconds: float, tokens: int) -> None:
        """One optimizer step (from 0): its loss, time and packed tokens."""
        self.progress.step(step + 1, loss, seconds, tokens=tokens)
        if step % STEPS_PER_CURVE_POINT == 0:
            for name, value in self.run.trainer.losses.items():
                self.curves.add_scalar(
                    f"training/loss_{name}" if name != "item" else "training/loss", value, step
                )
            self.curves.add_scalar("training/learning_rate", self.run.trainer.learning_rate(step), step)
            self.curves.add_scalar("training/tokens_per_s", self.progress.rates()["tokens"], step)

    def epoch(self, epoch: int, validation: dict[str, float]) -> None:
        """The end of an epoch (from 0), and its validation figures."""
        run, epochs = self.run, self.run.config.epochs
        for name, value in validation.items():
            self.curves.add_scalar(f"validation/{name}", value, int(run.steps_before[epoch + 1]))
        figures = " · ".join(f"{name} {value:.4f}" for name, value in validation.items()) or "without events"
        self.progress.say(f"epoch {epoch + 1}/{epochs} · loss {run.mean_loss:.4f} · validation {figures}")
        if run.validation.is_over and epoch + 1 < epochs:
            best = run.validation.best_epoch + 1
            self.progress.say(
                f"stopped early: no epoch since {best} had a better {run.validation.config.metric}"
            )


def main() -> None:
    """The command."""
    try:
        config = tyro.cli(PretrainConfig, prog="python -m foundation.pretrain")
    except ValueError as error:  # a setting out of range; tyro itself says so of some
        raise DataError(str(error)) from None
    is_sharded = config.item_table.items == "sharded"
    with library_notices_off(), process_group(alone=is_sharded) as (rank, _):
        try:
            with sole_run(config.out):
                document = pretrain(config)
        except DataError:
            # Every rank meets the same error; one of them says so.
            if rank:
                raise SystemExit(DataError.exit_status) from None
            raise
    if rank == 0:
        print(json.dumps(document))


if __name__ == "__main__":
    run_command(main)
