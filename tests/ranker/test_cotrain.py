"""Co-training as a command: what it learns, writes and refuses; who is trained how fast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.release import load_release
from foundation.split import draw_split
from foundation.vocabulary import OUT_OF_VOCABULARY
from ranker.arches.interaction import InteractionConfig
from ranker.artifact import load_ranker
from ranker.cotrain import cotrain
from ranker.evaluate import EvaluateConfig, evaluate_ranker
from ranker.model import RankerConfig
from ranker.requests.request import RequestConfig, hide_candidates
from ranker.training.cotraining import CotrainConfig, Cotraining
from ranker.training.losses import LossConfig
from ranker.training.optim import RankerOptimConfig
from ranker.training.sharding import process_group


@pytest.fixture
def group():
    """A process group of one."""
    with process_group():
        yield


@pytest.fixture
def config(synthetic_folder: Path, release_folder: Path, tmp_path: Path) -> CotrainConfig:
    return CotrainConfig(
        synthetic_folder,
        release_folder,
        tmp_path / "run",
        epochs=2,
        requests_per_batch=12,
        checkpoint_every=5,
        ranker=RankerConfig(
            embedding_dim=4, interaction=InteractionConfig(num_dots=2, dot_width=16, hidden_widths=(16, 8))
        ),
        requests=RequestConfig(),
    )


def with_tower(config: CotrainConfig, tower) -> CotrainConfig:
    return replace(config, ranker=replace(config.ranker, tower=tower))


def steps(run: Cotraining, number: int) -> list[torch.Tensor]:
    """Mean losses of the run's first steps, always on its first batch."""
    batch = run.batch(run.epoch_requests(0), 0)
    return [run.train_on(step, batch) for step in range(number)]


def start(config: CotrainConfig) -> Cotraining:
    return Cotraining(config, load_dataset(config.data), load_release(config.release))


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
        EvaluateConfig(config.out / "ranker", config.data, dump=config.out / "again.parquet")
    )["tasks"]
    assert found["watch"] == pytest.approx({name: document[name] for name in found["watch"]}, abs=1e-9)
    dumped = pl.read_parquet(config.out / "test_requests.parquet")
    assert dumped.equals(pl.read_parquet(config.out / "again.parquet"))
    assert dumped["auc_watch"].mean() == pytest.approx(document["gauc"])
    loaded = load_ranker(config.out / "ranker")
    assert loaded.manifest.metrics["watch_gauc"] == document["gauc"]
    assert loaded.manifest.foundation.version == load_release(config.release).manifest.version
    assert list((config.out / "tensorboard").iterdir())


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
    run = start(replace(config, hidden_candidates=0.0))
    name = "candidate_tower.sparse.bags.embedding_bags.item_id_table.weight"
    before = run.whole.state_dict()[name].clone()
    batch = run.batch(run.epoch_requests(0), 0)
    run.train_on(0, batch)
    assert run.gather()
    changed = (run.whole.state_dict()[name] != before).any(dim=1).nonzero().squeeze(1).tolist()
    assert set(changed) == set(run.features.candidate_rows(batch.candidate_id).tolist())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("tower", ["decoder", "pooled"])
def test_an_unknown_candidate_is_scored_like_some_title(config, tower) -> None:
    optim = RankerOptimConfig(learning_rate=1e-2, sparse_learning_rate=0.1, warmup_steps=5)
    run = start(replace(with_tower(config, tower), epochs=8, optim=optim, hidden_candidates=0.1))
    steps(run, 80)
    assert run.gather()
    batch = run.batch(run.epoch_requests(0), 0)
    inputs = run.builder.inputs(hide_candidates(batch, 1.0, np.random.default_rng(0)))
    assert (inputs.candidates.item_rows == OUT_OF_VOCABULARY).all()
    with torch.no_grad():
        probability = run.whole.eval()(inputs)[:, 0].sigmoid().mean().item()
    # Without hidden candidates in training this is 0.73 and 0.88, above most positives.
    assert probability == pytest.approx(batch.labels[:, 0].mean(), abs=0.2)


@pytest.mark.usefixtures("group")
def test_the_next_item_loss_reaches_the_decoder_by_itself(config) -> None:
    """With masks that leave no task label, only the auxiliary loss is left to train anything."""

    def moved(weight: float) -> bool:
        run = start(replace(config, loss=LossConfig(next_item_weight=weight)))
        before = {name: value.clone() for name, value in run.whole.state_dict().items()}
        batch = run.batch(run.epoch_requests(0), 0)
        means = run.train_on(0, batch._replace(mask=batch.mask & False))
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
def test_every_epoch_draws_other_requests_and_as_many(config) -> None:
    run = start(replace(config, requests=RequestConfig(per_profile=2)))
    one, again, two = (run.epoch_requests(epoch) for epoch in (0, 0, 1))
    assert one.history_end.tolist() == again.history_end.tolist() != two.history_end.tolist()
    assert len(one.profile) == len(two.profile) == run.steps_per_epoch * run.batch_size


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed was 0 .* is 4 now"),
        ({"optim": RankerOptimConfig(decoder_share=1.0)}, "optim.decoder_share was 0.1 .* is 1.0 now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(config, change, named) -> None:
    cotrain(config)
    with pytest.raises(DataError, match=named):
        cotrain(replace(config, **change))


def test_a_release_that_was_trained_on_what_is_held_out_here_is_refused(config, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(config.data, other)
    split = draw_split(load_dataset(other).profile_ids, seed=5)
    (other / "split.json").write_text(split.to_json(), encoding="utf-8")
    failed = command(other, config.release, config.out)
    assert failed.returncode == 2
    # Another split gives other vocabularies too; whichever differs first is named.
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1
    assert not (config.out / "ranker").exists()


@pytest.mark.usefixtures("group")
def test_a_release_whose_manifest_says_it_was_trained_on_more_is_refused(config, tmp_path) -> None:
    copied = tmp_path / "release"
    shutil.copytree(config.release, copied)
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    manifest["trained_on"]["cut"] |= {"training_share": 1.0}
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match=r"trained_on\.cut\.training_share is 1\.0"):
        cotrain(replace(config, release=copied))


@pytest.mark.usefixtures("group")
def test_a_release_trained_on_events_of_every_profile_is_refused(config, tmp_path) -> None:
    trained = pretrain(PretrainConfig(config.data, tmp_path / "last", "last", epochs=1))
    with pytest.raises(DataError, match=r"trained_on\.cut\.protocol is 'last'"):
        cotrain(replace(config, release=Path(trained["release"])))


def test_a_release_of_another_schema_is_refused_in_one_line(config, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(config.data, other)
    schema = (other / "schema.toml").read_text(encoding="utf-8")
    (other / "schema.toml").write_text(
        schema.replace("max_values = 3", "max_values = 2", 1), encoding="utf-8"
    )
    failed = command(other, config.release, config.out)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "schema.toml: item_features differs from the release's" in failed.stderr


def test_the_command_says_how_far_it_is_and_ends_in_json(config) -> None:
    done = command(config.data, config.release, config.out, "--epochs", "1", "--requests-per-batch", "16")
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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"requests_per_batch": 0}, "requests_per_batch is 0"),
    ],
)
def test_settings_out_of_range_are_named(config, change, named) -> None:
    with pytest.raises(ValueError, match=named):
        replace(config, **change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate is 0.0; it must be above 0"),
        ({"decoder_share": -0.1}, "optim.decoder_share is -0.1"),
    ],
)
def test_rates_out_of_range_are_named(change, named) -> None:
    with pytest.raises(ValueError, match=named):
        RankerOptimConfig(**change)
