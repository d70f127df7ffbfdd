"""Slices against plain loops over profiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from foundation.dataset import load_dataset
from foundation.leave_one_out import last_events
from foundation.raw_values import NO_VALUE
from foundation.slices import item_ages_days, slices
from foundation.split import TEST, training_mask


@pytest.fixture(scope="module")
def dataset(synthetic_folder):
    return load_dataset(synthetic_folder, "last")


@pytest.fixture(scope="module")
def tested(dataset, synthetic_ids):
    return last_events(dataset, synthetic_ids, TEST)


@pytest.fixture(scope="module")
def ranks(tested) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 25, size=len(tested.last_row)))


def _by_hand(
    values: list[int], ranks: list[int], name_of: Callable[[int], str]
) -> dict[str, dict[str, float]]:
    groups: dict[str, list[int]] = {}
    for value, rank in zip(values, ranks, strict=True):
        groups.setdefault(name_of(value), []).append(rank)
    return {
        name: {
            "profiles": len(group),
            "hr@10": sum(rank < 10 for rank in group) / len(group),
            "ndcg@10": sum(1 / math.log2(rank + 2) for rank in group if rank < 10) / len(group),
            "mrr": sum(1 / (rank + 1) for rank in group) / len(group),
        }
        for name, group in groups.items()
    }


def _assert_same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert found.keys() == expected.keys()
    for name, figures in expected.items():
        assert found[name] == pytest.approx(figures), name


def test_frequency_counts_training_events_of_the_item(dataset, synthetic_ids, tested, ranks):
    counts: dict[int, int] = {}
    for row in np.flatnonzero(training_mask(dataset)):
        counts[synthetic_ids.item[row]] = counts.get(synthetic_ids.item[row], 0) + 1
    values = [counts.get(synthetic_ids.item[row], 0) for row in tested.last_row]

    def name(count: int) -> str:
        return "0" if count == 0 else "1-10" if count <= 10 else "11-100" if count <= 100 else "101-1000"

    found = slices(dataset, synthetic_ids, tested, ranks)["item_frequency"]
    _assert_same(found, _by_hand(values, ranks.tolist(), name))
    assert len(found) > 1


def test_length_counts_all_events_of_the_history(dataset, synthetic_ids, tested, ranks):
    values = (tested.last_row - tested.first_row).tolist()

    def name(length: int) -> str:
        tops = (10, 20, 50, 100, 200)
        number = sum(length > top for top in tops)
        return ("1-10", "11-20", "21-50", "51-100", "101-200", "201+")[number]

    found = slices(dataset, synthetic_ids, tested, ranks)["history_length"]
    _assert_same(found, _by_hand(values, ranks.tolist(), name))
    assert sum(figures["profiles"] for figures in found.values()) == len(ranks)


def _with_launches(dataset, launched_at: np.ndarray | None):
    return replace(dataset, catalogue=replace(dataset.catalogue, launched_at=launched_at))


def test_age_counts_from_launch_or_else_from_the_first_training_event(dataset, synthetic_ids, tested, ranks):
    """Of three items in turn: the first has a launch 40 days before the tests' end, the second one after it, the
    third none."""
    end = int(dataset.events.timestamp.max())
    turn = np.arange(dataset.num_items) % 3
    launched_at = np.select([turn == 0, turn == 1], [end - 40 * 86_400, end + 1], NO_VALUE)
    first: dict[int, int] = {}
    for row in np.flatnonzero(training_mask(dataset)):
        item, time = int(synthetic_ids.item[row]), int(dataset.events.timestamp[row])
        first[item] = min(time, first.get(item, time))
    values = []
    for row in tested.last_row:
        item, time = int(synthetic_ids.item[row]), int(dataset.events.timestamp[row])
        launch = int(launched_at[item - 2])
        born = first.get(item) if launch == NO_VALUE else launch
        values.append(-1 if born is None else max(0, time - born) // 86_400)
    launched = _with_launches(dataset, launched_at)
    assert item_ages_days(launched, synthetic_ids, tested).tolist() == values

    def name(days: int) -> str:
        if days < 0:
            return "unknown"
        return "0-6" if days < 7 else "7-27" if days < 28 else "28-364" if days < 365 else "365+"

    found = slices(launched, synthetic_ids, tested, ranks)["item_age_days"]
    _assert_same(found, _by_hand(values, ranks.tolist(), name))


def test_without_launches_an_item_never_trained_on_has_no_age(dataset, synthetic_ids, tested):
    target = synthetic_ids.item[tested.last_row[0]]
    unseen = synthetic_ids.item.copy()
    unseen[np.flatnonzero(training_mask(dataset) & (unseen == target))] = 0
    ages = item_ages_days(_with_launches(dataset, None), synthetic_ids._replace(item=unseen), tested)
    assert ages[0] == -1
    assert (ages >= 0).any()
