"""Metrics against what they are defined as, written out pair by pair and place by place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.evaluation.metrics import (
    auc,
    grouped_auc,
    grouped_ndcg,
    kept_offsets,
    mean_of_defined,
    normalised_entropy,
)

# Few different scores, so that ties are the rule.
CANDIDATE = st.tuples(st.integers(0, 4), st.integers(0, 1))
REQUESTS = st.lists(st.lists(CANDIDATE, max_size=12), min_size=1, max_size=6)


def pair_by_pair(candidates: list[tuple[int, int]]) -> float:
    pairs = [(p, n) for p, is_p in candidates if is_p for n, is_n in candidates if not is_n]
    if not pairs:
        return float("nan")
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def place_by_place(candidates: list[tuple[int, int]], cutoff: int) -> float:
    def gain(order: list[tuple[int, int]]) -> float:
        return sum(label / np.log2(place + 1) for place, (_, label) in enumerate(order[:cutoff], start=1))

    best = gain(sorted(candidates, key=lambda candidate: -candidate[1]))
    return gain(sorted(candidates, key=lambda candidate: -candidate[0])) / best if best else float("nan")


def flat(requests: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    everything = np.array([each for request in requests for each in request]).reshape(-1, 2)
    offsets = np.cumsum([0, *(len(request) for request in requests)])
    return everything[:, 0] * 0.7 - 1.0, everything[:, 1].astype(np.float32), offsets


@given(REQUESTS)
def test_auc_within_requests_is_the_share_of_pairs_won(requests) -> None:
    scores, labels, offsets = flat(requests)
    expected = [pair_by_pair(request) for request in requests]
    np.testing.assert_allclose(grouped_auc(scores, labels, offsets), expected, rtol=1e-12)
    together = [candidate for request in requests for candidate in request]
    np.testing.assert_allclose(auc(scores, labels), pair_by_pair(together), rtol=1e-12)
    defined = [value for value in expected if not np.isnan(value)]
    found = mean_of_defined(grouped_auc(scores, labels, offsets))
    np.testing.assert_allclose(found, np.mean(defined) if defined else np.nan)


@given(REQUESTS, st.integers(1, 12))
def test_ndcg_is_the_gain_over_the_best_orders(requests, cutoff) -> None:
    expected = [place_by_place(request, cutoff) for request in requests]
    np.testing.assert_allclose(grouped_ndcg(*flat(requests), cutoff), expected, rtol=1e-12)


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=1, max_size=30))
def test_normalised_entropy_is_log_loss_over_the_base_rates(candidates) -> None:
    probs, labels = np.array(candidates).T
    base = labels.mean()
    found = normalised_entropy(probs, labels)
    if base in (0, 1):
        assert np.isnan(found)
        return
    loss = -np.mean([np.log(p if label else 1 - p) for p, label in candidates])
    assert found == pytest.approx(loss / -(base * np.log(base) + (1 - base) * np.log(1 - base)))


def test_saying_the_base_rate_has_entropy_one_and_certainty_stays_finite() -> None:
    labels = np.array([1, 0, 0, 0])
    assert normalised_entropy(np.full(4, 0.25), labels) == pytest.approx(1.0)
    assert np.isfinite(normalised_entropy(np.array([0.0, 1.0, 0.0, 0.0]), labels))


def test_metrics_of_nothing_are_undefined() -> None:
    nothing = np.empty(0)
    assert np.isnan(auc(nothing, nothing))
    assert np.isnan(normalised_entropy(nothing, nothing))
    assert np.isnan(mean_of_defined(np.array([np.nan])))
    assert grouped_auc(nothing, nothing, np.array([0])).shape == (0,)


@given(st.lists(st.lists(st.booleans(), max_size=5), min_size=1, max_size=5))
def test_kept_offsets_count_what_is_left_of_each_request(requests) -> None:
    mask = np.array([each for request in requests for each in request], dtype=bool)
    offsets = np.cumsum([0, *(len(request) for request in requests)])
    assert np.diff(kept_offsets(mask, offsets)).tolist() == [sum(request) for request in requests]
