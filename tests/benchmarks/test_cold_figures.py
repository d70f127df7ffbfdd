"""Places among titles of one kind, popularity by genre and its intervals, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cold_figures import (
    DISCOUNTED,
    HITS,
    Estimates,
    estimate,
    expected_gain,
    gates_by_count,
    same_kind,
    unseen,
    value_popularity,
)
from foundation.item_tower import ItemFacts, ItemTower


def _all(scores: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def test_a_hit_is_one_of_the_first_ten_places() -> None:
    scores = torch.arange(20.0).flip(0).expand(3, -1)
    gain = expected_gain(scores, torch.tensor([0, 9, 10]), _all(scores), HITS)
    assert gain.tolist() == [1.0, 1.0, 0.0]


def test_ndcg_discounts_the_place() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    gain = expected_gain(scores, torch.tensor([2]), _all(scores), DISCOUNTED)
    assert gain.item() == pytest.approx(1 / math.log2(4))


def test_equals_share_the_places_that_they_take() -> None:
    # Eight ahead, then five equals on places 9 to 13, two of which are among the first ten.
    scores = torch.tensor([[5.0] * 8 + [1.0] * 5 + [0.0] * 4])
    assert expected_gain(scores, torch.tensor([12]), _all(scores), HITS).item() == pytest.approx(2 / 5)
    expected = (1 / math.log2(10) + 1 / math.log2(11)) / 5
    assert expected_gain(scores, torch.tensor([8]), _all(scores), DISCOUNTED).item() == pytest.approx(
        expected
    )


def test_scores_that_say_nothing_hit_by_chance() -> None:
    scores = torch.zeros(1, 50)
    ranked = _all(scores)
    ranked[0, 30:] = False
    assert expected_gain(scores, torch.tensor([4]), ranked, HITS).item() == pytest.approx(10 / 30)


def test_a_target_is_ranked_though_it_was_seen() -> None:
    scores = torch.tensor([[0.0, 0.0, 5.0, 1.0]])
    ranked = unseen(4, 1, (torch.tensor([0, 0]), torch.tensor([2, 3])))
    assert not ranked.any()
    assert expected_gain(scores, torch.tensor([3]), ranked, DISCOUNTED).item() == 1.0


def test_cold_titles_are_ranked_among_cold_ones() -> None:
    is_cold = torch.tensor([False, False, True, False, True, True, False])
    seen = torch.tensor([0, 1]), torch.tensor([4, 6])
    ranked = same_kind(is_cold, torch.tensor([2, 3]), seen)
    assert ranked[0].nonzero().flatten().tolist() == [2, 5]
    assert ranked[1].nonzero().flatten().tolist() == [3]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_the_expectation_is_the_mean_over_orders_of_equals(scores: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    ahead, equal = sum(s > scores[target] for s in scores), scores.count(scores[target])
    places = [ahead + i for i in range(equal)]
    expected = sum(1 / math.log2(place + 2) for place in places if place < 10) / equal
    table = torch.tensor([scores], dtype=torch.float32)
    gain = expected_gain(table, torch.tensor([target]), _all(table), DISCOUNTED)
    assert gain.item() == pytest.approx(expected)


def test_popularity_by_genre() -> None:
    # Genres 1, 2, 3 in two columns; rows 0 and 1 are no titles; the last two titles are cold.
    rows = np.array([[0, 0], [0, 0], [1, 0], [1, 2], [2, 0], [3, 0], [1, 2], [3, 1], [0, 0]])
    counts = np.array([0, 99, 10, 20, 40, 7, 0, 0, 0])
    is_cold = np.array([False] * 6 + [True, True, True])
    by_variant = value_popularity(rows, counts, is_cold)
    # Events per warm title: genre 1 (10 + 20) / 2 = 15, genre 2 (20 + 40) / 2 = 30, genre 3 7 / 1 = 7.
    assert by_variant["mean"][6:].tolist() == [22.5, 11.0, 0.0]
    assert by_variant["sum"][6:].tolist() == [45.0, 22.0, 0.0]


def test_a_genre_of_cold_titles_alone_has_no_popularity() -> None:
    rows, counts = np.array([[0], [0], [1], [2]]), np.array([0, 5, 8, 0])
    scores = value_popularity(rows, counts, np.array([False, False, False, True]))["mean"]
    assert scores.tolist() == [0.0, 0.0, 8.0, 0.0]


def test_means_are_over_events_and_draws_over_profiles() -> None:
    profile = np.repeat([7, 3], [1, 3])
    figures = {"a": np.array([1.0, 0.0, 0.0, 0.0]), "b": np.array([0.5, 0.5, 0.5, 0.5])}
    found = estimate(figures, profile, seed=0, num_samples=400)
    assert found.means == {"a": 0.25, "b": 0.5}
    # Either profile twice, or both.
    assert set(found.samples["a"]) == {0.0, 0.25, 1.0}
    assert set(found.samples["b"]) == {0.5}
    assert found.ratio("a", "b") == 0.5
    assert found.ratio_interval("a", "b") == [0.0, 2.0]
    assert found.interval("b") == [0.5, 0.5]


def test_no_ratio_to_nothing() -> None:
    found = Estimates({"a": 1.0, "b": 0.0}, {"a": np.ones(3), "b": np.array([0.0, 1.0, 1.0])})
    assert found.ratio("a", "b") is None
    assert found.ratio_interval("a", "b") is None


def test_gates_are_told_by_how_often_titles_were_seen() -> None:
    counts = torch.tensor([0, 1, 0, 0, 1, 2, 3, 9])
    facts = ItemFacts(torch.zeros(8, 1, dtype=torch.int64), counts, torch.zeros(8).long(), torch.zeros(8, 0))
    tower = ItemTower(facts, 1, 1, 4)
    gates = gates_by_count(tower)
    assert [(gate["from_count"], gate["titles"]) for gate in gates] == [(0, 2), (1, 1), (2, 2), (8, 1)]
    assert all(gate["gate"] == pytest.approx(gate["initial_gate"]) for gate in gates)
    with torch.no_grad():
        tower.count_gate.weight[0] = 0.0
    assert gates_by_count(tower)[0]["gate"] == pytest.approx(0.5)
