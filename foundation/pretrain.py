"""Pre-train a foundation model: `python -m foundation.pretrain --data DIR --out DIR`.

Under --out: `run.json` (what the run was started with), `checkpoints/`, `tensorboard/`, and at the end
`release/`. Started again after a kill, the run goes on from its last checkpoint to the same weights, bit for
bit, given the same number of threads; a finished run does nothing but say so. The last line on stdout is one
JSON document.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter

from foundation.dataset import load_dataset
from foundation.errors import run_command
from foundation.manifest import training_data_of
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.progress import Progress
from foundation.release import read_manifest, save_release
from foundation.run_record import data_hash, keep_record
from foundation.training_batches import padding_share

STEPS_PER_CURVE_POINT = 10


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Runs, resumes or reports a run.

    Returns:
        The JSON document of the last line: release, steps, epochs, loss, training_s, tokens_per_s,
        padding_share, validation figures.

    Raises:
        DataError: wrong data, settings other than those of an earlier start, or a damaged release.
    """
    dataset = load_dataset(config.data, config.protocol)
    settings = asdict(config) | {"data": data_hash(dataset)}
    for irrelevant in ("out", "checkpoint_every"):
        del settings[irrelevant]
    keep_record(config.out, settings)
    release = config.out / "release"
    if release.exists():
        print(f"{config.out}: this run is finished; its release is {release}", flush=True)
        return {"release": str(release), **read_manifest(release).metrics}
    run = Pretraining(config, dataset)
    metrics = _train(run)
    save_release(release, run.trainer.model, run.tokenizer, training_data_of(dataset), metrics)
    return {"release": str(release), **metrics}


def _train(run: Pretraining) -> dict[str, float]:
    """Takes all steps that are still to take; the figures of the finished run."""
    epochs = run.config.epochs
    done = run.resume()
    first_epoch = int(np.searchsorted(run.steps_before, done, side="right")) - 1
    validation: dict[str, float] = {}
    with (
        SummaryWriter(run.config.out / "tensorboard", purge_step=done) as curves,
        Progress(run.num_steps, done) as progress,
    ):
        progress.say(
            f"{len(run.histories.num_events):,} training profiles · {epochs} epochs · "
            f"{run.num_steps:,} steps · {torch.get_num_threads()} threads"
            + (f" · going on after step {done:,}" if done else "")
        )
        for epoch in range(first_epoch, epochs):
            _train_epoch(run, epoch, done, curves, progress)
            done = int(run.steps_before[epoch + 1])
            validation = run.validate()
            for name, value in validation.items():
                curves.add_scalar(f"validation/{name}", value, done)
            figures = " · ".join(f"{name} {value:.4f}" for name, value in validation.items())
            progress.say(f"epoch {epoch + 1}/{epochs} · loss {run.mean_loss:.4f} · validation {figures}")
    # A run that was killed after its last step has only its validation and its release to make up for.
    validation = validation or run.validate()
    return {
        "steps": run.num_steps,
        "epochs": epochs,
        "loss": run.mean_loss,
        **run.throughput(),
        "padding_share": padding_share(run.batches(0)),
        **{f"validation_{name}": value for name, value in validation.items()},
    }


def _train_epoch(run: Pretraining, epoch: int, done: int, curves: SummaryWriter, progress: Progress) -> None:
    """The steps of `epoch` after step `done`, with curves and checkpoints."""
    first = int(run.steps_before[epoch])
    for step, batch in enumerate(run.batches(epoch)[done - first :], start=done):
        if step == first:
            run.epoch_loss.zero_()
        started_s = time.perf_counter()
        loss = run.trainer.step(step, run.tokenizer, run.events, batch)
        seconds = time.perf_counter() - started_s
        run.epoch_loss += torch.tensor([loss, 1.0], dtype=torch.float64)
        run.work += torch.tensor([batch.num_tokens, seconds], dtype=torch.float64)
        progress.step(step + 1, loss, seconds, tokens=batch.num_tokens)
        if step % STEPS_PER_CURVE_POINT == 0:
            curves.add_scalar("training/loss", loss, step)
            curves.add_scalar("training/learning_rate", run.trainer.learning_rate(step), step)
            curves.add_scalar("training/tokens_per_s", progress.rates()["tokens"], step)
        if (step + 1) % run.config.checkpoint_every == 0 or step + 1 == run.num_steps:
            run.save(step + 1)


def main() -> None:
    """The command."""
    config = tyro.cli(
        PretrainConfig, prog="python -m foundation.pretrain", config=(tyro.conf.OmitArgPrefixes,)
    )
    print(json.dumps(pretrain(config)))


if __name__ == "__main__":
    run_command(main)
