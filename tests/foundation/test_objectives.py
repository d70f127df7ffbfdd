"""The chunked softmax against PyTorch's own cross entropy, and who may compete in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from foundation import objectives
from foundation.objectives import (
    ObjectiveConfig,
    linear_cross_entropy,
    next_item_loss,
    sampled_next_item_loss,
    uniform_negatives,
)


def _problem(num_tokens: int, num_items: int, width: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=dtype)
    items = torch.randn(num_items, width, generator=generator, dtype=dtype)
    targets = torch.randint(0, num_items, (num_tokens,), generator=generator)
    return hidden, items, targets


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.integers(1, 30),
    num_items=st.integers(1, 17),
    width=st.integers(1, 9),
    logits_per_chunk=st.sampled_from([1, 7, 64, 1 << 20]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_matches_cross_entropy_and_its_gradients(num_tokens, num_items, width, logits_per_chunk, scale):
    queries, keys, targets = _problem(num_tokens, num_items, width, torch.float64)
    queries = (queries * scale).requires_grad_()
    keys.requires_grad_()
    expected = F.cross_entropy(queries @ keys.T, targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected * 0.37, (queries, keys))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "LOGITS_PER_CHUNK", logits_per_chunk)
        loss = linear_cross_entropy(queries, keys, targets)
    gradients = torch.autograd.grad(loss * 0.37, (queries, keys))

    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-9)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def test_gradcheck_of_the_whole_loss_in_float64():
    hidden, items, targets = _problem(7, 6, 3, torch.float64)
    targets[0], targets[3] = 0, -1

    def loss(h, v):
        return next_item_loss(h, v, targets, temperature=0.5)[0]

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), items.requires_grad_()))


def test_never_holds_tokens_by_items():
    num_tokens, num_items = 300, 200
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.untyped_storage().nbytes() // result.element_size())
            return result

    hidden, items, targets = _problem(num_tokens, num_items, 4, torch.float32)
    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(objectives, "LOGITS_PER_CHUNK", 10 * num_items)
        loss, _ = next_item_loss(hidden.requires_grad_(), items.requires_grad_(), targets, 0.05)
        loss.backward()
    assert largest <= 10 * num_items
    assert largest >= num_tokens * 4


def test_out_of_vocabulary_and_start_rows_never_compete():
    hidden, items, targets = _problem(9, 8, 4, torch.float32)
    targets = targets.clamp_min(2)
    changed = items.clone()
    changed[:2] = 100.0
    items.requires_grad_()
    loss, _ = next_item_loss(hidden, items, targets, 0.05)
    loss.backward()
    assert torch.equal(loss, next_item_loss(hidden, changed, targets, 0.05)[0])
    assert items.grad is not None
    assert torch.count_nonzero(items.grad[:2]) == 0
    assert torch.count_nonzero(items.grad[2:]) > 0


@pytest.mark.parametrize("missing", [-1, 0, 1])
def test_tokens_without_a_known_target_are_left_out(missing):
    hidden, items, targets = _problem(9, 8, 4, torch.float32)
    targets = targets.clamp_min(2)
    expected, expected_count = next_item_loss(hidden[1:], items, targets[1:], 0.05)
    targets[0] = missing
    loss, count = next_item_loss(hidden, items, targets, 0.05)
    assert torch.equal(loss, expected)
    assert count == expected_count == 8


def test_no_target_at_all_gives_zero_loss_and_zero_gradients():
    hidden, items, _ = _problem(3, 8, 4, torch.float32)
    hidden.requires_grad_()
    loss, count = next_item_loss(hidden, items, torch.zeros(3, dtype=torch.int64), 0.05)
    loss.backward()
    assert loss.item() == 0.0
    assert count.item() == 0
    assert hidden.grad is not None
    assert torch.count_nonzero(hidden.grad) == 0


def test_sampled_over_every_item_once_equals_the_full_softmax():
    hidden, items, targets = _problem(12, 9, 4, torch.float64)
    targets = targets.clamp_min(2)
    full, full_count = next_item_loss(hidden, items, targets, 0.05)
    sampled, count = sampled_next_item_loss(hidden, items, targets, 0.05, torch.arange(2, 9))
    torch.testing.assert_close(sampled, full, rtol=1e-12, atol=1e-12)
    assert count == full_count


def test_sampled_masks_a_negative_that_is_the_target():
    hidden, items, _ = _problem(4, 9, 4, torch.float32)
    targets = torch.full((4,), 5)
    loss, _ = sampled_next_item_loss(hidden, items, targets, 0.05, torch.tensor([5, 5]))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    with_other, _ = sampled_next_item_loss(hidden, items, targets, 0.05, torch.tensor([5, 6]))
    assert with_other.item() > 0


def test_uniform_negatives_are_known_rows_and_seeded():
    draw = uniform_negatives(6, 4000, torch.Generator().manual_seed(3))
    assert torch.equal(draw, uniform_negatives(6, 4000, torch.Generator().manual_seed(3)))
    counts = torch.bincount(draw, minlength=6)
    assert counts[:2].sum() == 0
    assert counts[2:].min() > 800


@pytest.mark.parametrize("bad", [{"softmax": "half"}, {"num_negatives": 0}])
def test_config_errors_name_the_field(bad):
    with pytest.raises(ValueError, match=f"objective.{next(iter(bad))}"):
        ObjectiveConfig(**bad)
