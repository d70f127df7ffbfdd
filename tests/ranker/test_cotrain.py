"""Co-training as a command: what it learns, writes and refuses; who is trained how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from foundation.release import load_release
from foundation.vocabulary import OUT_OF_VOCABULARY
from ranker.artifact import load_ranker
from ranker.cotrain import cotrain
from ranker.evaluate import EvaluateConfig, evaluate_ranker
from ranker.rows.folder import RowFolder
from ranker.rows.job import RowsConfig, make_rows
from ranker.training.cotrain_config import CotrainConfig
from ranker.training.cotraining import Cotraining
from ranker.training.losses import LossConfig
from ranker.training.optim import RankerOptimConfig


def with_tower(config: CotrainConfig, tower) -> CotrainConfig:
    return replace(config, ranker=replace(config.ranker, tower=tower))


def steps(run: Cotraining, number: int) -> list[torch.Tensor]:
    """Mean losses of the run's first steps, always on its first batch."""
    batch = run.batch(0)
    return [run.train_on(step, batch) for step in range(number)]


def start(config: CotrainConfig) -> Cotraining:
    assert config.rows is not None
    return Cotraining(config, RowFolder.open(config.rows), load_release(config.release))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("tower", ["decoder", "pooled"])
def test_a_run_writes_a_ranker_that_scores_as_it_says(config, tower) -> None:
    config = with_tower(config, tower)
    document = cotrain(config)
    assert document["steps"] == 20
    assert document["ranker"] == str(config.out / "ranker")
    assert document == json.loads((config.out / "metrics.json").read_text())
    assert {"auc", "gauc", "ndcg@10", "normalised_entropy"} <= document["tasks"]["like"].keys()
    assert document["requests_per_s"] > 0
    assert document["candidates_per_s"] == pytest.approx(20 * document["requests_per_s"])
    found = evaluate_ranker(
        EvaluateConfig(config.out / "ranker", rows=config.rows, dump=config.out / "again.parquet")
    )["tasks"]
    assert found["watch"] == pytest.approx({name: document[name] for name in found["watch"]}, abs=1e-9)
    dumped = pl.read_parquet(config.out / "test_requests.parquet")
    assert dumped.equals(pl.read_parquet(config.out / "again.parquet"))
    assert dumped["auc_watch"].mean() == pytest.approx(document["gauc"])
    loaded = load_ranker(config.out / "ranker")
    assert loaded.manifest.metrics["watch_gauc"] == document["gauc"]
    assert loaded.manifest.foundation.version == load_release(config.release).manifest.version
    assert list((config.out / "tensorboard").iterdir())
    assert len(list((config.out / "plots").glob("*.png"))) == 2


@pytest.mark.usefixtures("group")
def test_a_finished_run_does_nothing_but_say_so(config, capsys) -> None:
    first = cotrain(config)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    assert cotrain(config) == first
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*")} == before
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("tower", ["decoder", "pooled"])
def test_learns_what_it_is_shown(config, tower) -> None:
    optim = RankerOptimConfig(learning_rate=1e-2, sparse_learning_rate=0.1, warmup_steps=5)
    losses = steps(start(replace(with_tower(config, tower), epochs=6, optim=optim)), 60)
    assert losses[-1][0] < 0.6 * losses[0][0]
    assert losses[-1][1] < 0.6 * losses[0][1]


@pytest.mark.usefixtures("group")
def test_the_decoder_learns_at_its_share_of_the_rate(config) -> None:
    def moved(share: float) -> tuple[float, float]:
        settings = replace(
            config,
            optim=RankerOptimConfig(
                learning_rate=1e-4, decoder_share=share, warmup_steps=0, decoder_warmup_steps=0
            ),
        )
        run = start(settings)
        before = {name: value.clone() for name, value in run.whole.state_dict().items()}
        steps(run, 1)
        assert run.gather()
        after = run.whole.state_dict()
        decoder = "profile_tower.foundation.decoder.blocks.0.attention.project_in.weight"
        head = "interaction.heads.weight"
        of_decoder, of_head = (float((after[name] - before[name]).abs().max()) for name in (decoder, head))
        return of_decoder, of_head

    slow, frozen = moved(0.1), moved(0.0)
    assert frozen[0] == 0.0
    # AdamW's first step moves every weight by about its rate.
    assert slow[0] == pytest.approx(1e-5, rel=0.01)
    assert slow[1] == pytest.approx(1e-4, rel=0.01) == frozen[1]


@pytest.mark.usefixtures("group")
def test_a_step_updates_the_table_rows_that_were_looked_up_and_no_other(config) -> None:
    run = start(config)
    name = "candidate_tower.sparse.bags.embedding_bags.item_id_table.weight"
    before = run.whole.state_dict()[name].clone()
    batch = run.batch(0)
    run.train_on(0, batch)
    assert run.gather()
    changed = (run.whole.state_dict()[name] != before).any(dim=1).nonzero().squeeze(1).tolist()
    assert set(changed) == set(batch.inputs.candidates.item_rows.tolist())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("tower", ["decoder", "pooled"])
def test_an_unknown_candidate_is_scored_like_some_title(config, tower) -> None:
    optim = RankerOptimConfig(learning_rate=1e-2, sparse_learning_rate=0.1, warmup_steps=5)
    settings = replace(with_tower(config, tower), epochs=8, optim=optim)
    run = start(replace(settings, augmentation=replace(settings.augmentation, hidden_candidates=0.1)))
    steps(run, 80)
    assert run.gather()
    inputs, targets = run.batch(0)[:2]
    unknown = torch.full_like(inputs.candidates.item_rows, OUT_OF_VOCABULARY)
    inputs = inputs._replace(candidates=inputs.candidates._replace(item_rows=unknown), marks=None)
    with torch.no_grad():
        probability = run.whole.eval()(inputs)[:, 0].sigmoid().mean().item()
    # Without hidden candidates in training this is 0.73 and 0.88, above most positives.
    assert probability == pytest.approx(targets.labels[:, 0].mean().item(), abs=0.2)


@pytest.mark.usefixtures("group")
def test_the_next_item_loss_reaches_the_decoder_by_itself(config) -> None:
    """With masks that leave no task label, only the auxiliary loss is left to train anything."""

    def moved(weight: float) -> bool:
        run = start(replace(config, loss=LossConfig(next_item_weight=weight)))
        before = {name: value.clone() for name, value in run.whole.state_dict().items()}
        batch = run.batch(0)
        without = batch.targets._replace(mask=batch.targets.mask & False)
        means = run.train_on(0, batch._replace(targets=without))
        assert means[0] == means[1] == 0.0
        assert means[2] > 1.0
        assert run.gather()
        after = run.whole.state_dict()
        assert torch.equal(after["interaction.heads.weight"], before["interaction.heads.weight"])
        name = "profile_tower.foundation.decoder.blocks.0.attention.project_in.weight"
        return not torch.equal(after[name], before[name])

    assert moved(0.5)
    assert not moved(0.0)


@pytest.mark.usefixtures("group")
def test_epochs_read_the_draws_in_turn(event_task_folder, release_folder, tmp_path, config) -> None:
    rows = tmp_path / "rows"
    make_rows(RowsConfig(event_task_folder, release_folder, rows, draws=2))
    run = start(replace(config, rows=rows, epochs=3))
    tokens = [
        sorted(
            run.batch(step).inputs.candidates.item_rows.tolist()
            for step in range(epoch * run.plan.steps_per_epoch, (epoch + 1) * run.plan.steps_per_epoch)
        )
        for epoch in range(3)
    ]
    assert [run.plan.draw(epoch) for epoch in range(3)] == [0, 1, 0]
    assert tokens[0] != tokens[1]


@pytest.mark.usefixtures("group")
def test_rows_are_made_of_data_first_and_once(config, synthetic_folder) -> None:
    given = replace(config, epochs=1, data=synthetic_folder, rows=None)
    cotrain(given)
    made = config.out / "rows" / "manifest.json"
    first = made.stat().st_mtime_ns
    again = replace(config, epochs=1, out=config.out.with_name("again"), rows=config.out / "rows")
    cotrain(again)
    cotrain(given)
    assert made.stat().st_mtime_ns == first
    weights = [load_file(run.out / "ranker" / "model.safetensors") for run in (given, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_command_says_how_far_it_is_and_ends_in_json(config, synthetic_folder) -> None:
    done = command(
        synthetic_folder, config.release, config.out, "--epochs", "1", "--requests-per-batch", "16"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["epochs"] == 1
    for word in ("requests/s", "candidates/s", "loss", "epoch 1/1", "gauc"):
        assert word in done.stderr
    assert "Warning" not in done.stderr


def command(data: Path, release: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["--data", str(data), "--release", str(release), "--out", str(out), *options]
    return subprocess.run(
        [sys.executable, "-m", "ranker.cotrain", *words, "--dot-width", "16"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
