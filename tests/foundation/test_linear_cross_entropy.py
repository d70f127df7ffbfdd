"""Chunked cross entropy against torch's own on whole logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation import linear_cross_entropy as chunked
from foundation.linear_cross_entropy import linear_cross_entropy, log_partition, soft_cross_entropy

BOUND = 20.0


def vectors(num_rows: int, seed: int, scale: float = 1.0) -> Tensor:
    rows = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (F.normalize(rows, dim=1) * scale).requires_grad_()


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


@pytest.mark.parametrize("bound", [BOUND, None])
@settings(max_examples=25, deadline=None)
@given(num_tokens=st.integers(1, 40), num_items=st.integers(1, 30), rows=st.integers(1, 50))
def test_equals_cross_entropy_on_whole_logits(bound, num_tokens: int, num_items: int, rows: int) -> None:
    q, k = vectors(num_tokens, 0, BOUND), vectors(num_items, 1)
    targets = torch.arange(num_tokens) % num_items
    weights = torch.linspace(0.0, 2.0, num_tokens, dtype=torch.float64)
    expected = (F.cross_entropy(q @ k.T, targets, reduction="none") * weights).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "LOGITS_PER_CHUNK", rows * num_items)
        found = linear_cross_entropy(q, k, targets, weights, bound)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(gradients(found, q, k), gradients(expected, q, k), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_large_logits_do_not_overflow_where_no_bound_is_known() -> None:
    q, k = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(q, k, torch.tensor([1])).item() == pytest.approx(400.0)
    # A bound beyond what exp() stands is not relied on.
    assert linear_cross_entropy(q, k, torch.tensor([1]), bound=200.0).item() == pytest.approx(400.0)


def test_one_query_between_two_equal_keys_by_hand() -> None:
    q, k = torch.tensor([[0.5]]), torch.tensor([[1.0], [1.0], [-1.0]])
    by_hand = math.log(2 * math.exp(0.5) + math.exp(-0.5)) - 0.5
    assert linear_cross_entropy(q, k, torch.tensor([0])).item() == pytest.approx(by_hand)


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.floats(0, 3)), max_size=20))
def test_soft_targets_equal_the_sum_over_pairs(pairs: list[tuple[int, int, float]]) -> None:
    q, k = vectors(6, 2, BOUND), vectors(9, 3)
    token = torch.tensor([pair[0] for pair in pairs], dtype=torch.int64)
    item = torch.tensor([pair[1] for pair in pairs], dtype=torch.int64)
    weight = torch.tensor([pair[2] for pair in pairs], dtype=torch.float64)
    expected = -((q @ k.T).log_softmax(dim=1)[token, item] * weight).sum()
    found = soft_cross_entropy(q, k, token, item, weight, BOUND)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(found, q, k), gradients(expected, q, k), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_nothing_of_size_tokens_by_items_is_kept() -> None:
    q, k = vectors(500, 4), vectors(400, 5)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        log_partition(q, k, torch.ones(500, dtype=torch.float64))
    assert max(kept) <= 500 * 8


def test_no_token_gives_no_loss() -> None:
    q, k = torch.empty(0, 8, requires_grad=True), vectors(3, 6)
    loss = linear_cross_entropy(q, k, torch.empty(0, dtype=torch.int64))
    assert loss.item() == 0
    assert not gradients(loss, k)[0].any()


@pytest.mark.parametrize("bound", [BOUND, None])
def test_single_precision_is_as_good_as_torch_s(bound) -> None:
    q, k = (each.detach().float().requires_grad_() for each in (vectors(300, 7, BOUND), vectors(200, 8)))
    targets = torch.arange(300) % 200
    exact = gradients(F.cross_entropy(q.double() @ k.double().T, targets, reduction="sum"), q, k)
    found = gradients(linear_cross_entropy(q, k, targets, bound=bound), q, k)
    for ours, truth in zip(found, exact, strict=True):
        assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max()
