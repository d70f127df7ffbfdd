"""The training command: nothing is timed that computes something else, and what its document holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import plain_decoder, pretraining_speed
from benchmarks.plain_decoder import PlainModel
from benchmarks.pretraining_speed import (
    Gap,
    PretrainingSpeed,
    compare_step,
    measure_pretraining,
    plan_steps,
    random_batches,
    speeds,
)
from benchmarks.training import TrainingSpeedConfig, table
from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.model import FoundationConfig
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.training_batches import Batch, BatchConfig
from foundation.window import WindowConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(synthetic_dataset: Dataset) -> PretrainConfig:
    """A tiny model with dropout and masked ids; batches of several windows of different lengths."""
    model = FoundationConfig(
        DecoderConfig(width=16, num_layers=2, num_heads=2, dropout=0.3), WindowConfig(window=20, block=5)
    )
    return PretrainConfig(
        data=synthetic_dataset.folder, out=Path("unused"), model=model, batch=BatchConfig(120)
    )


def test_both_take_the_same_step(settings: PretrainConfig, synthetic_dataset: Dataset) -> None:
    gap = compare_step(settings, synthetic_dataset)
    assert gap.loss <= 1e-5 and gap.gradient <= 1e-5, gap
    assert gap.refusal() is None


@pytest.mark.parametrize("mistake", ["positions", "causality", "facets", "gradient"])
def test_a_plain_model_that_computes_something_else_is_refused(
    mistake: str, settings: PretrainConfig, synthetic_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PlainModel
    if mistake == "positions":
        monkeypatch.setattr(plain_decoder, "rotate", lambda x: x)
    elif mistake == "causality":
        attend = torch.nn.functional.scaled_dot_product_attention
        sees_all = lambda q, k, v, is_causal: attend(q, k, v)  # noqa: E731
        monkeypatch.setattr(plain_decoder.PlainAttention, "forward", _attention_by(sees_all))
    elif mistake == "facets":
        plain = _WithoutFacets
    else:
        plain = _WithoutItemGradient
    gap = compare_step(settings, synthetic_dataset, plain)
    refusal = gap.refusal()
    assert refusal and "not timed" in refusal
    if mistake == "gradient":
        assert gap.loss <= 1e-5 and "gradients of item_tower.id_embedding" in refusal


def _attention_by(attend):
    def forward(self: plain_decoder.PlainAttention, x_BSD: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.project_in(x_BSD).chunk(3, dim=-1)
        )
        out = attend(plain_decoder.rotate(q), plain_decoder.rotate(k), v, is_causal=True)
        return self.project_out(out.transpose(1, 2).flatten(2))

    return forward


class _WithoutFacets(PlainModel):
    def loss(self, windows):
        return super().loss([window._replace(facet_ids=window.facet_ids * 0) for window in windows])


class _WithoutItemGradient(PlainModel):
    """The right loss, and no gradient for the items' ids."""

    def __init__(self, config, weights) -> None:
        super().__init__(config, weights)
        self.item_tower.id_embedding.weight.register_hook(torch.zeros_like)


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (Gap(float("nan"), 0.0, "a"), "losses"),
        (Gap(0.0, float("nan"), "a"), "gradients of a"),
        (Gap(2e-5, 0.0, "a"), "losses differ by 2.00e-05"),
    ],
)
def test_what_is_not_a_number_is_refused_too(gap: Gap, said: str) -> None:
    assert said in str(gap.refusal())


def test_no_speed_is_reported_where_the_two_differ(
    synthetic_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining_speed, "compare_step", lambda *_: Gap(0.5, 0.0, "a"))
    found = measure_pretraining(PretrainingSpeed(2, 1, 300, 0), synthetic_dataset, lambda text: None)
    assert found["tokens_per_s"] == {} and found["ratios"] == {} and found["loss_difference"] == 0.5
    assert "not timed" in table(found) and "tokens/s" not in table(found)


def test_random_batches_hold_the_windows_of_the_bucketed_ones() -> None:
    lengths = np.array([3, 3, 4, 9, 10, 20, 21])
    stops = lengths.cumsum()
    groups = [[0, 1, 2], [3, 4], [5, 6]]
    bucketed = [Batch((stops - lengths)[chosen], stops[chosen]) for chosen in groups]
    batches = random_batches(bucketed, np.random.default_rng(0))
    assert [len(batch.starts) for batch in batches] == [2, 2, 2]
    starts = np.concatenate([batch.starts for batch in batches]).tolist()
    assert len(set(starts)) == 6 and set(starts) <= set((stops - lengths).tolist())
    for batch in batches:
        for start, stop in zip(batch.starts, batch.stops, strict=True):
            assert stop == stops[(stops - lengths).tolist().index(start)]


def test_a_plan_goes_over_as_many_epochs_as_it_takes(
    settings: PretrainConfig, synthetic_dataset: Dataset
) -> None:
    run = Pretraining(replace(settings, epochs=1), synthetic_dataset)
    num_steps = 2 * run.num_steps + 1
    plan = plan_steps(run, num_steps)
    assert {name: len(batches) for name, batches in plan.items()} == {
        "marquee": num_steps,
        "plain": num_steps,
    }
    tokens = {name: sum(batch.num_tokens for batch in batches) for name, batches in plan.items()}
    assert tokens["plain"] == pytest.approx(tokens["marquee"], rel=0.2)


def test_a_rate_is_tokens_over_seconds_without_each_blocks_first_step() -> None:
    tokens = {name: np.array([[9, 10, 30], [9, 20, 20], [9, 40, 0]]) for name in ("marquee", "plain")}
    seconds = {
        "marquee": np.array([[9.0, 1.0, 1.0], [9.0, 2.0, 2.0], [9.0, 0.5, 0.5]]),  # 20, 10, 40 a second
        "plain": np.array([[9.0, 4.0, 4.0], [9.0, 4.0, 4.0], [9.0, 2.0, 2.0]]),  # 5, 5, 10 a second
    }
    found = speeds(tokens, seconds)
    assert found["tokens_per_s"] == {"marquee": 20.0, "plain": 5.0}
    assert found["ratios"] == {"tokens_per_s_vs_plain": 4.0}
    low, high = found["ci95"]["tokens_per_s_vs_plain"]
    assert 2.0 <= low <= 4.0 <= high <= 8.0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"blocks": 0}, "--blocks is 0"),
        ({"steps": 0}, "--steps is 0"),
        ({"tokens_per_batch": 0}, "--tokens-per-batch is 0"),
        ({"threads": -1}, "--threads is -1"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, field: str) -> None:
    with pytest.raises(DataError, match=field):
        TrainingSpeedConfig(part="pretrain", **settings)


def test_the_command_ends_with_one_document(synthetic_folder: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.training", "--part", "pretrain", "--json"]
    command += ["--data", str(synthetic_folder), "--blocks", "2", "--steps", "2"]
    command += ["--tokens-per-batch", "300", "--threads", "1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # nothing else is printed
    assert report["part"] == "pretrain" and report["settings"]["tokens_per_batch"] == 300
    assert report["loss_difference"] <= 1e-5 and report["gradient_difference"] <= 1e-5
    assert report["refused"] == {}
    for figure in ("tokens_per_s", "tokens_per_step"):
        assert set(report[figure]) == {"marquee", "plain"} and min(report[figure].values()) > 0
    assert 0 <= report["padding_share"]["marquee"] < report["padding_share"]["plain"] < 1
    low, high = report["ci95"]["tokens_per_s_vs_plain"]
    assert 0 < low <= report["ratios"]["tokens_per_s_vs_plain"] <= high
    assert report["environment"]["threads"] == 1 and report["environment"]["commit"]
    assert "Warning" not in done.stderr
    assert "marquee" in table(report) and "tokens_per_s_vs_plain" in table(report)
