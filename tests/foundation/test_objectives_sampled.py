"""The sampled softmax: by hand, which negatives are masked, how they are drawn and corrected."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.objectives.negatives import draw_negatives
from foundation.objectives.softmax import (
    ProfileItems,
    items_of_sequences,
    next_item_loss,
    sampled_next_item_loss,
)

# Items by row: 0 and 1 special, then e1, e2, -e1, -e2; hidden states along e1: cosines 1, 0, -1, 0.
ITEMS = torch.tensor([[9.0, 9.0], [9.0, 9.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -1.0]])
HIDDEN = torch.tensor([[5.0, 0.0], [0.5, 0.0], [1.0, 0.0]])
E1, E2 = math.exp(2.0), math.exp(-2.0)  # temperature 0.5


def _problem(num_tokens: int, num_items: int, width: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator, dtype=dtype)
    items = torch.randn(num_items, width, generator=generator, dtype=dtype)
    targets = torch.randint(2, num_items, (num_tokens,), generator=generator)
    return hidden, items, targets


def test_by_hand():
    loss, count = sampled_next_item_loss(HIDDEN, ITEMS, torch.tensor([2, 3, 0]), 0.5, torch.tensor([4, 4]))
    assert loss.item() == pytest.approx((math.log(E1 + 2 * E2) - 2) + math.log(1 + 2 * E2))
    assert count.item() == 2


def test_over_every_item_once_equals_the_full_softmax():
    hidden, items, targets = _problem(12, 9, 4, torch.float64)
    full, full_count = next_item_loss(hidden, items, targets, 0.05)
    sampled, count = sampled_next_item_loss(hidden, items, targets, 0.05, torch.arange(2, 9))
    torch.testing.assert_close(sampled, full, rtol=1e-12, atol=1e-12)
    assert count == full_count


def test_a_negative_that_is_the_target_is_masked():
    hidden, items, _ = _problem(4, 9, 4, torch.float32)
    targets = torch.full((4,), 5)
    loss, _ = sampled_next_item_loss(hidden, items, targets, 0.05, torch.tensor([5, 5]))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    with_other, _ = sampled_next_item_loss(hidden, items, targets, 0.05, torch.tensor([5, 6]))
    assert with_other.item() > 0


def test_items_of_the_same_sequence_are_no_negatives_by_hand():
    targets, negatives = torch.tensor([2, 3, 5]), torch.tensor([3, 4])
    sequence = torch.tensor([0, 0, 1])
    profiles = ProfileItems(sequence, sequence, targets)
    loss, _ = sampled_next_item_loss(HIDDEN, ITEMS, targets, 0.5, negatives, profiles=profiles)
    # Tokens 0 and 1 lose negative 3, which their sequence went to; token 2 keeps both.
    by_hand = (math.log(E1 + E2) - 2) + math.log(1 + E2) + math.log(1 + 1 + E2)
    assert loss.item() == pytest.approx(by_hand)


def test_items_of_a_profile_outside_its_window_are_no_negatives_by_hand():
    targets, negatives = torch.tensor([2, 3]), torch.tensor([4])
    profiles = ProfileItems(torch.tensor([0, 1]), torch.tensor([0, 0, 1]), torch.tensor([4, 2, 3]))
    loss, _ = sampled_next_item_loss(HIDDEN[:2], ITEMS, targets, 0.5, negatives, profiles=profiles)
    # Profile 0 went to item 4 before its window: its token has no negative left, and so no loss.
    assert loss.item() == pytest.approx(math.log(1 + E2))


def test_log_counts_by_hand():
    counts = torch.tensor([0.5, 4.0])
    loss, _ = sampled_next_item_loss(
        HIDDEN[:1], ITEMS, torch.tensor([2]), 0.5, torch.tensor([4, 3]), log_count_N=counts.log()
    )
    assert loss.item() == pytest.approx(math.log(E1 + E2 / 0.5 + 1 / 4.0) - 2, rel=1e-5)


def test_weights_by_hand():
    weights = torch.tensor([3.0, 0.0, 1.0])
    loss, count = sampled_next_item_loss(
        HIDDEN, ITEMS, torch.tensor([2, 3, 1]), 0.5, torch.tensor([4]), weights_T=weights
    )
    assert loss.item() == pytest.approx(3 * (math.log(E1 + E2) - 2), rel=1e-4)
    assert count.item() == 1


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), min_size=1, max_size=20),
    rows=st.lists(st.integers(2, 9), max_size=12),
)
def test_items_of_sequences_equals_looking_one_by_one(tokens, rows):
    sequence, items = (torch.tensor(column) for column in zip(*tokens, strict=True))
    found = items_of_sequences(sequence, items, torch.tensor(rows, dtype=torch.int64))
    expected = [[(b, row) in tokens for row in rows] for b in range(max(sequence.tolist()) + 1)]
    assert found.tolist() == expected


def test_uniform_negatives_are_candidates_and_seeded():
    no_targets, candidates = torch.empty(0, dtype=torch.int64), torch.tensor([2, 3, 5])
    draw, again = (
        draw_negatives(3000, 0, no_targets, candidates, torch.Generator().manual_seed(3)).rows
        for _ in range(2)
    )
    assert torch.equal(draw, again)
    counts = torch.bincount(draw, minlength=6)
    assert counts[candidates].min() > 800
    assert counts[candidates].sum() == 3000


def test_negatives_of_the_batch_are_its_targets_each_once():
    targets = torch.tensor([7, 3, 3, 9])
    drawn = draw_negatives(0, 100, targets, torch.arange(2, 12), torch.Generator().manual_seed(0))
    assert sorted(drawn.rows.tolist()) == [3, 3, 7, 9]
    expected = {3: math.log(2), 7: 0.0, 9: 0.0}
    assert drawn.log_count.tolist() == pytest.approx([expected[row] for row in drawn.rows.tolist()])
    some = draw_negatives(0, 3, targets, torch.arange(2, 12), torch.Generator().manual_seed(0)).rows
    assert len(some) == 3
    assert set(some.tolist()) <= {3, 7, 9}


def test_mixed_negatives_and_their_expected_counts():
    targets, candidates = torch.tensor([3, 3, 9, 4]), torch.tensor([2, 3, 4, 5, 9])
    drawn = draw_negatives(50, 2, targets, candidates, torch.Generator().manual_seed(1))
    assert len(drawn.rows) == 52
    assert set(drawn.rows[:50].tolist()) == set(candidates.tolist())
    # 50 / 5 of the catalogue, and 2 of the 4 targets.
    expected = {2: 10.0, 5: 10.0, 3: 11.0, 4: 10.5, 9: 10.5}
    assert drawn.log_count.exp().tolist() == pytest.approx([expected[row] for row in drawn.rows.tolist()])


def test_no_targets_give_no_negatives_of_the_batch():
    none = torch.empty(0, dtype=torch.int64)
    drawn = draw_negatives(0, 5, none, torch.arange(2, 6), torch.Generator())
    assert len(drawn.rows) == len(drawn.log_count) == 0
    loss, count = sampled_next_item_loss(HIDDEN[:1], ITEMS, torch.tensor([0]), 0.5, drawn.rows)
    assert loss.item() == 0
    assert count.item() == 0


def test_corrected_negatives_estimate_the_partition_of_the_catalogue_without_bias():
    """Of skewed in-batch negatives: corrected, exp(loss) averages to the full softmax's; uncorrected it does not."""
    hidden = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    items = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    candidates, target, batch = torch.arange(2, 8), torch.tensor([2]), torch.tensor([3] * 20 + [4, 5, 6, 7])
    full = next_item_loss(hidden, items, target, 0.5)[0].exp().item()
    generator = torch.Generator().manual_seed(0)
    corrected, raw = [], []
    for _ in range(1000):
        drawn = draw_negatives(6, 6, batch, candidates, generator)
        for found, log_count in ((corrected, drawn.log_count), (raw, None)):
            found.append(sampled_next_item_loss(hidden, items, target, 0.5, drawn.rows, log_count)[0].exp())
    assert torch.stack(corrected).mean().item() == pytest.approx(full, rel=0.03)
    assert abs(torch.stack(raw).mean().item() / full - 1) > 0.1
