"""Steps with item ids spread over processes: two take those of one, with one look-up a step; they learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from foundation.dataset import load_dataset
from foundation.decoder import DecoderConfig
from foundation.distributed import process_group
from foundation.item_table import ItemTableConfig
from foundation.model import FoundationConfig
from foundation.objectives.config import ObjectiveConfig
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.release import load_release
from foundation.sharded_trainer import ShardedTrainer
from foundation.training_batches import BatchConfig
from foundation.window import WindowConfig

STEPS = 12


def _run(data: Path, softmax: Literal["full", "sampled"] = "sampled") -> tuple[Pretraining, ShardedTrainer]:
    config = PretrainConfig(
        data,
        data / "out",
        model=FoundationConfig(
            DecoderConfig(width=16, num_layers=1, dropout=0.2), window=WindowConfig(20, 5)
        ),
        objective=ObjectiveConfig(softmax=softmax, num_negatives=32),
        batch=BatchConfig(300),
    )
    run = Pretraining(config, load_dataset(data))
    trainer = run.trainer
    sharded = ShardedTrainer(
        trainer.model, trainer.objective, config.optim, trainer.plan, ItemTableConfig("sharded")
    )
    return run, sharded


def _train(data: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    run, trainer = _run(data)
    batches = [batch for epoch in range(8) for batch in run.batches(epoch)][:STEPS]
    losses = [trainer.step(step, run.tokenizer, run.events, batch) for step, batch in enumerate(batches)]
    assert "item_tower.id_embedding.weight" not in trainer.model.state_dict()
    trainer.restore_dense()
    return losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def _as_rank(rank: int, size: int, data: Path, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
    found = _train(data)
    if rank == 0:
        torch.save(found, folder / "two.pt")
    dist.destroy_process_group()


def test_two_processes_take_the_steps_of_one(synthetic_folder, tmp_path):
    spawn(_as_rank, args=(2, synthetic_folder, tmp_path), nprocs=2)
    two_losses, two = torch.load(tmp_path / "two.pt")
    with process_group(alone=True):
        one_losses, one = _train(synthetic_folder)
    assert one_losses == pytest.approx(two_losses, rel=1e-5)
    assert one_losses[-1] < one_losses[0]
    assert one.keys() == two.keys()
    assert "item_tower.id_embedding.weight" in one
    for name, weight in one.items():
        difference = (weight - two[name]).double().norm()
        assert difference <= 1e-5 * max(1.0, weight.double().norm().item()), name


def test_the_full_softmax_is_refused(synthetic_folder):
    with process_group(alone=True), pytest.raises(ValueError, match=r"softmax is 'full'.*needs 'sampled'"):
        _run(synthetic_folder, "full")


SHARDED = ["--items", "sharded", "--softmax", "sampled", "--num-negatives", "32", "--decoder.width", "16"]
SHARDED += ["--parts", "2"]


def _command(data: Path, out: Path, processes: int, epochs: int) -> dict:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "foundation.pretrain", "--data", str(data), "--out", str(out)]
    sizes = ["--decoder.num-layers", "1", "--tokens-per-batch", "300", "--checkpoint-every", "5"]
    done = subprocess.run(
        [*command, *SHARDED, *sizes, "--patience", "1", "--metric", "loss", "--epochs", str(epochs)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_command_releases_the_whole_table_from_one_process_and_from_two(synthetic_folder, tmp_path):
    documents = [_command(synthetic_folder, tmp_path / str(n), n, 3) for n in (1, 2)]
    assert documents[0]["validation_loss"] == pytest.approx(documents[1]["validation_loss"], rel=1e-4)
    one, two = (load_release(tmp_path / str(n) / "release").model for n in (1, 2))
    weight, other = (model.item_tower.id_embedding.weight for model in (one, two))
    assert torch.allclose(weight, other, atol=1e-4)
    assert weight.std() > 0.02
