"""Windowed metrics of training: what our exact ones say of the same candidates, over steps and processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from ranker.evaluation.metrics import auc, calibration, normalised_entropy, sigmoid
from ranker.evaluation.streaming import WindowedMetrics
from ranker.training.sharding import process_group

NAMES = ("watch", "like")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(sizes: tuple[int, ...]) -> list[Batch]:
    rng = torch.Generator().manual_seed(0)
    made = []
    for size in sizes:
        logits = torch.randn(size, 2, generator=rng)
        labels = (torch.rand(size, 2, generator=rng) < 0.3).float()
        mask = torch.rand(size, 2, generator=rng) < 0.8
        made.append((logits, labels, mask))
    return made


def exact(window: list[Batch]) -> dict[str, float]:
    logits, labels, mask = (torch.cat(each).numpy() for each in zip(*window, strict=True))
    found = {}
    for column, name in enumerate(NAMES):
        kept = mask[:, column]
        mine, of_mine = logits[kept, column], labels[kept, column]
        found[f"{name}_auc"] = auc(mine, of_mine)
        found[f"{name}_normalised_entropy"] = normalised_entropy(sigmoid(mine), of_mine)
        found[f"{name}_calibration"] = calibration(sigmoid(mine), of_mine)
    return found


@pytest.fixture
def group():
    with process_group():
        yield


@pytest.mark.usefixtures("group")
def test_they_agree_with_the_exact_ones() -> None:
    made = batches((40, 1, 0, 70, 13))
    metrics = WindowedMetrics(NAMES)
    for batch in made:
        metrics.update(*batch)
    assert metrics.compute() == pytest.approx(exact(made), rel=1e-5)


@pytest.mark.usefixtures("group")
def test_old_steps_leave_the_window() -> None:
    made = batches((50, 50, 50, 50))
    metrics = WindowedMetrics(NAMES, window_candidates=100)
    for batch in made:
        metrics.update(*batch)
    assert metrics.compute() == pytest.approx(exact(made[2:]), rel=1e-5)
    assert metrics.compute() != pytest.approx(exact(made), rel=1e-3)


@pytest.mark.usefixtures("group")
def test_measuring_changes_nothing_and_a_score_without_positives_is_left_out() -> None:
    logits, labels, mask = batches((30,))[0]
    labels[:, 1] = 0
    kept = (logits.clone(), labels.clone(), mask.clone())
    state = torch.get_rng_state()
    metrics = WindowedMetrics(NAMES)
    metrics.update(logits, labels, mask)
    assert {name.partition("_")[0] for name in metrics.compute()} == {"watch"}
    assert all(torch.equal(one, other) for one, other in zip((logits, labels, mask), kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def _measure(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=2)
    metrics = WindowedMetrics(NAMES)
    # Ranks hold shares of other sizes.
    for batch in batches((20, 30, 9, 31))[rank::2]:
        metrics.update(*batch)
    (folder / f"{rank}.json").write_text(json.dumps(metrics.compute()))
    dist.destroy_process_group()


def test_they_are_over_all_processes(tmp_path: Path) -> None:
    spawn(_measure, (tmp_path,), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == pytest.approx(exact(batches((20, 30, 9, 31))), rel=1e-5)
    assert found[1] == {}
