"""Metrics against what they are defined as, written out pair by pair and place by place."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc
from torchrec.metrics.auc import compute_auc
from torchrec.metrics.calibration import compute_calibration, get_calibration_states
from torchrec.metrics.gauc import get_auc_states
from torchrec.metrics.ndcg import NDCGComputation
from torchrec.metrics.ne import compute_ne, get_ne_states

from ranker.evaluation.metrics import (
    auc,
    calibration,
    grouped_auc,
    grouped_ndcg,
    kept_offsets,
    mean_of_defined,
    normalised_entropy,
    sigmoid,
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


def test_sigmoid_neither_overflows_nor_loses_small_values() -> None:
    assert sigmoid(np.array([-800.0, -30.0, 0.0, 800.0])) == pytest.approx([0.0, np.exp(-30.0), 0.5, 1.0])


def test_calibration_is_predicted_over_observed() -> None:
    probs, labels = np.array([0.5, 0.25, 0.25, 0.5]), np.array([1, 0, 0, 0])
    assert calibration(probs, labels) == pytest.approx(1.5)
    # Every negative stands for four.
    assert calibration(probs, labels, np.log(0.25)) == pytest.approx(0.5 + 4 * 1.0)
    assert np.isnan(calibration(probs, np.zeros(4)))


# Below: where TorchRec and torchmetrics are right, they agree; where they are not, a test says why.


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=2, max_size=40))
def test_entropy_and_calibration_are_torchrecs(candidates) -> None:
    probs, labels = torch.tensor(candidates, dtype=torch.float64).T
    ones = torch.ones_like(probs)
    found = get_ne_states(labels, probs.clone(), ones, 1e-12)
    if 0 < labels.sum() < len(labels):
        sums = [found[name] for name in ("cross_entropy_sum", "weighted_num_samples")]
        expected = compute_ne(sums[0], sums[1], found["pos_labels"], found["neg_labels"], 1e-12)
        assert normalised_entropy(probs.numpy(), labels.numpy()) == pytest.approx(float(expected))
    if labels.sum():
        expected = compute_calibration(*get_calibration_states(labels, probs, ones).values())
        assert calibration(probs.numpy(), labels.numpy()) == pytest.approx(float(expected))


def torchrec_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    predictions, of_each = torch.from_numpy(scores)[None], torch.from_numpy(labels)[None]
    return float(compute_auc(1, [predictions], [of_each], [torch.ones_like(of_each)]))


@given(REQUESTS)
def test_auc_is_torchmetrics_and_without_ties_torchrecs(requests) -> None:
    scores, labels, _ = flat(requests)
    if not 0 < labels.sum() < len(labels):
        return
    probs, targets = torch.from_numpy(sigmoid(scores)), torch.from_numpy(labels)
    assert auc(scores, labels) == pytest.approx(float(binary_auroc(probs, targets.long())), abs=1e-6)
    untied = untie(scores)
    assert auc(untied, labels) == pytest.approx(torchrec_auc(untied, labels), abs=1e-5)


def test_torchrecs_auc_depends_on_the_order_of_ties() -> None:
    ties, labels = np.zeros(2), np.array([1.0, 0.0])
    assert {torchrec_auc(ties, labels), torchrec_auc(ties, labels[::-1].copy())} == {0.0, 1.0}
    assert auc(ties, labels) == auc(ties, labels[::-1]) == 0.5


@given(REQUESTS)
def test_gauc_is_torchrecs_without_ties(requests) -> None:
    scores, labels, offsets = flat([request for request in requests if request])
    if not len(scores):
        return
    untied = untie(scores)
    of_each = torch.from_numpy(labels)[None]
    # torch.compiler.disable hides its arguments from type checkers.
    found = cast(Any, get_auc_states)(
        of_each,
        torch.from_numpy(untied).float()[None],
        torch.ones_like(of_each),
        torch.from_numpy(np.diff(offsets)),
    )
    expected = grouped_auc(untied, labels, offsets)
    assert int(found["num_samples"]) == (~np.isnan(expected)).sum()
    assert float(found["auc_sum"]) == pytest.approx(np.nansum(expected), abs=1e-4)


@given(REQUESTS)
def test_ndcg_is_torchrecs_over_requests_with_a_positive(requests) -> None:
    """TorchRec counts a request without a positive as 0, and takes memory of requests times candidates."""
    scores, labels, offsets = flat([request for request in requests if request])
    if not len(scores):
        return
    untied = untie(scores)
    metric = NDCGComputation(0, 1, 1, 1_000, k=10, report_ndcg_as_decreasing_curve=False)
    session = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    metric.update(
        predictions=torch.from_numpy(untied)[None],
        labels=torch.from_numpy(labels)[None],
        weights=torch.ones(1, len(labels)),
        required_inputs={"session_id": torch.from_numpy(session)[None]},
    )
    expected = grouped_ndcg(untied, labels, offsets)
    lifetime = metric.compute()[0].value
    assert float(lifetime) == pytest.approx(np.nansum(expected) / len(expected), abs=1e-6)


def untie(scores: np.ndarray) -> np.ndarray:
    """The same order, ties broken; float32 can hold it, and none is 0, which TorchRec's GAUC takes for padding."""
    return (np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1) / 100.0
