"""The heads command: losses by profile add up to those of the heads, and what its document holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from benchmarks import held_out_losses
from benchmarks.heads import HeadsConfig, measure, table
from benchmarks.held_out_losses import difference, held_out
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.leave_one_out import LastEvents, rank_tested, ranking_metrics
from foundation.objectives.labels import label_loss
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.release import Release, load_release
from foundation.split import TEST, profile_roles

HEADS = ("next.device", "duration", "audio_languages", "genres")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HeadsConfig:
    return HeadsConfig(
        tmp_path_factory.mktemp("heads"),
        profiles=40,
        items=60,
        sessions=4,
        heads=HEADS,
        seeds=2,
        epochs=1,
        width=8,
        layers=1,
    )


@pytest.fixture(scope="module")
def run() -> Callable[..., dict[str, Any]]:
    """Pre-trains in this process, from the arguments of the command."""

    def run(title: str, module: str, *arguments: object) -> dict[str, Any]:
        assert module == "foundation.pretrain"
        return pretrain(tyro.cli(PretrainConfig, args=[str(argument) for argument in arguments]))

    return run


@pytest.fixture(scope="module")
def report(config: HeadsConfig, run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return measure(config, run, lambda text: None)


@pytest.fixture(scope="module")
def release(config: HeadsConfig, report: dict[str, Any]) -> Release:
    """The first run with heads."""
    return load_release(config.folder / "with-0" / "release")


@pytest.fixture(scope="module")
def dataset(config: HeadsConfig, report: dict[str, Any]) -> Dataset:
    return load_dataset(config.folder / "data")


def test_the_document_says_of_each_head_whether_it_beats_its_marginals(report: dict[str, Any]) -> None:
    assert tuple(report["heads"]) == HEADS
    for head in report["heads"].values():
        low, high = head["ci95"]
        assert low <= head["difference"] <= high and head["beats_marginals"] == (high < 0)
        assert head["loss"] - head["marginal_loss"] == pytest.approx(head["difference"], abs=1e-9)
        assert np.mean(head["loss_by_seed"]) == pytest.approx(head["loss"])
    for item in report["item"].values():
        assert item["with"] - item["without"] == pytest.approx(item["difference"], abs=1e-9)
        assert np.mean(item["difference_by_seed"]) == pytest.approx(item["difference"], abs=1e-9)
    assert report["tested"]["profiles"] == 3
    json.dumps(report)
    assert all(name in table(report) for name in (*HEADS, "ndcg@10"))


def test_finished_runs_are_reused(
    config: HeadsConfig, run: Callable[..., dict[str, Any]], report: dict[str, Any]
) -> None:
    releases = sorted(path.stat().st_mtime_ns for path in config.folder.glob("*/release/manifest.json"))
    again = measure(config, run, lambda text: None)
    assert (again["heads"], again["item"]) == (report["heads"], report["item"])
    assert releases == sorted(
        path.stat().st_mtime_ns for path in config.folder.glob("*/release/manifest.json")
    )


def test_a_release_carries_its_heads(config: HeadsConfig, release: Release) -> None:
    assert release.heads is not None and tuple(release.heads.names) == HEADS
    assert load_release(config.folder / "without-0" / "release").heads is None


def test_marginals_of_profiles_add_up_to_those_of_all(release: Release, dataset: Dataset) -> None:
    """Profile by profile as `Heads.marginal_loss` says of all tokens at once."""
    found = held_out(release, dataset)
    for name, loss in found.marginal_loss.items():
        total, count = found.marginals[name].sum(axis=0)
        assert total / count == pytest.approx(loss, rel=1e-9)
        np.testing.assert_array_equal(found.marginals[name][:, 1], found.heads[name][:, 1])


def test_a_head_that_says_the_training_frequencies_equals_its_marginals(
    release: Release, dataset: Dataset
) -> None:
    heads = release.heads
    assert heads is not None
    raw = dataset.events
    events = release.tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    spans = held_out_losses._tested_spans(release, dataset)
    logs, _ = held_out_losses._marginals(release, dataset, events, spans)
    weight, bias = heads.project.weight.detach().clone(), heads.project.bias.detach().clone()
    with torch.no_grad():
        heads.project.weight.zero_()
        heads.project.bias.copy_(torch.cat([logs[name].float() for name in heads.names]))
    found = held_out(release, dataset)
    with torch.no_grad():
        heads.project.weight.copy_(weight)
        heads.project.bias.copy_(bias)
    for name in HEADS:
        np.testing.assert_allclose(found.heads[name], found.marginals[name], rtol=1e-5)


def test_items_are_ranked_as_leave_one_out_ranks_them(release: Release, dataset: Dataset) -> None:
    """Every event of a history that fits the window, asked for one by one."""
    raw = dataset.events
    events = release.tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    spans = held_out_losses._tested_spans(release, dataset)
    rows = np.concatenate([span.rows[span.rows > first] for first, span in spans])
    firsts = np.concatenate([np.full((span.rows > first).sum(), first) for first, span in spans])
    ranking = rank_tested(release.model, release.tokenizer, events, LastEvents(firsts, rows))
    expected = ranking_metrics(ranking.ranks) | {"loss": ranking.losses.mean().item()}
    for name, sums in held_out(release, dataset).item.items():
        total, count = sums.sum(axis=0)
        assert count == len(rows)
        assert total / count == pytest.approx(expected[name], rel=1e-4)


def test_test_profiles_with_a_history_are_looked_at(release: Release, dataset: Dataset) -> None:
    spans = held_out_losses._tested_spans(release, dataset)
    is_looked_at = (profile_roles(dataset) == TEST) & (np.diff(dataset.offsets) > 1)
    assert [first for first, _ in spans] == dataset.offsets[:-1][is_looked_at].tolist()
    assert 0 < len(spans) < (profile_roles(dataset) == TEST).sum()


def test_a_difference_is_of_all_tokens_and_its_interval_of_profiles() -> None:
    counts = np.array([1.0, 3.0])
    theirs = np.column_stack((np.zeros(2), counts))
    ours = np.column_stack((np.array([4.0, 0.0]), counts))
    mean, (low, high) = difference(ours, theirs)
    assert mean == 1.0 and low < 1.0 < high
    same = np.column_stack((counts * 0.5, counts))
    mean, (low, high) = difference(same, theirs)
    assert (mean, low, high) == pytest.approx((0.5, 0.5, 0.5))


def test_settings_that_make_no_comparison_are_refused() -> None:
    with pytest.raises(DataError, match="--seeds is 0"):
        HeadsConfig(Path("unused"), seeds=0)
    with pytest.raises(DataError, match="--heads is empty"):
        HeadsConfig(Path("unused"), heads=())


def test_logs_of_shares_are_logits_of_the_marginals() -> None:
    """By hand: shares 1/4 and 3/4; a token of class 0 costs log 4."""
    logits = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    total, count = label_loss(logits.expand(2, -1), torch.tensor([[0], [-1]]))
    assert (total.item(), count.item()) == (pytest.approx(np.log(4)), 1)
