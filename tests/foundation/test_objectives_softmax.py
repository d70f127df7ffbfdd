"""The full softmax: by hand, what it holds in memory, who competes in it and which tokens it counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foundation import linear_cross_entropy as chunked
from foundation.objectives.config import ObjectiveConfig
from foundation.objectives.multi_token import Pairs
from foundation.objectives.softmax import item_set_loss, next_item_loss


def _problem(num_tokens: int, num_items: int, width: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=dtype)
    items = torch.randn(num_items, width, generator=generator, dtype=dtype)
    targets = torch.randint(0, num_items, (num_tokens,), generator=generator)
    return hidden, items, targets


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
        patch.setattr(chunked, "LOGITS_PER_CHUNK", 10 * num_items)
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


@pytest.mark.parametrize("bad", [{"softmax": "half"}, {"num_negatives": 0}])
def test_config_errors_name_the_field(bad):
    with pytest.raises(ValueError, match=f"objective.{next(iter(bad))}"):
        ObjectiveConfig(**bad)


# Items by row: 0 and 1 special, then e1, e2, -e1; the hidden state points along e1, so that cosines are 1, 0, -1.
ITEMS = torch.tensor([[9.0, 9.0], [9.0, 9.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
HIDDEN = torch.tensor([[5.0, 0.0], [0.5, 0.0]])
E1, E2 = math.exp(2.0), math.exp(-2.0)  # temperature 0.5


def test_full_softmax_by_hand():
    loss, count = next_item_loss(HIDDEN, ITEMS, torch.tensor([2, 3]), 0.5)
    log_partition = math.log(E1 + 1 + E2)
    assert loss.item() == pytest.approx((log_partition - 2) + log_partition)
    assert count.item() == 2


def test_rows_that_do_not_compete_are_in_no_partition_and_are_no_target():
    competes = torch.tensor([True, True, True, False, True])
    loss, count = next_item_loss(HIDDEN, ITEMS, torch.tensor([2, 3]), 0.5, competes)
    assert loss.item() == pytest.approx(math.log(E1 + E2) - 2, rel=1e-4)
    assert count.item() == 1
    everyone = torch.ones(5, dtype=torch.bool)
    given_all, _ = next_item_loss(HIDDEN, ITEMS, torch.tensor([2, 3]), 0.5, everyone)
    assert torch.equal(given_all, next_item_loss(HIDDEN, ITEMS, torch.tensor([2, 3]), 0.5)[0])


def test_weights_multiply_losses_and_a_weight_of_zero_is_no_target():
    weights = torch.tensor([0.25, 0.0])
    loss, count = next_item_loss(HIDDEN, ITEMS, torch.tensor([4, 3]), 0.5, weights_T=weights)
    assert loss.item() == pytest.approx(0.25 * (math.log(E1 + 1 + E2) + 2))
    assert count.item() == 1


def test_item_sets_by_hand():
    pairs = Pairs(torch.tensor([1, 1, 1, 0]), torch.tensor([2, 4, 0, 1]), torch.tensor([1.0, 0.5, 1.0, 1.0]))
    loss, count = item_set_loss(HIDDEN, ITEMS, pairs, 0.5)
    log_partition = math.log(E1 + 1 + E2)
    assert loss.item() == pytest.approx((log_partition - 2) + 0.5 * (log_partition + 2))
    assert count.item() == 1, "a token whose items are all unknown is no target"


def test_item_sets_of_competing_rows_by_hand():
    competes = torch.tensor([True, True, False, True, True])
    pairs = Pairs(torch.tensor([0, 0, 1]), torch.tensor([2, 4, 3]), torch.tensor([1.0, 2.0, 1.0]))
    loss, count = item_set_loss(HIDDEN, ITEMS, pairs, 0.5, competes)
    log_partition = math.log(1 + E2)
    assert loss.item() == pytest.approx(2 * (log_partition + 2) + log_partition)
    assert count.item() == 2
