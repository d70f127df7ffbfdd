"""Losses: masks, sums and counts, and that a rank's share of labels doesn't change what is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks
from ranker.training.losses import LossConfig, LossSums, RankerWithLoss, global_loss, task_losses
from ranker.training.sharding import process_group
from ranker.training.targets import targets


@given(st.lists(st.tuples(st.floats(-8, 8), st.booleans(), st.booleans()), max_size=20))
def test_task_losses_sum_over_labelled_candidates_alone(candidates) -> None:
    rows = np.array(candidates, dtype=np.float64).reshape(-1, 3)
    logits, labels, mask = (torch.from_numpy(rows[:, i : i + 1]) for i in range(3))
    sums, counts = task_losses(logits, labels, mask.bool())
    expected = sum(
        math.log1p(math.exp(-x)) if y else math.log1p(math.exp(x)) for x, y, kept in candidates if kept
    )
    assert sums.item() == pytest.approx(expected, abs=1e-12)
    assert counts.item() == sum(kept for _, _, kept in candidates)


def test_a_candidate_without_a_label_gets_no_gradient() -> None:
    logits = torch.tensor([[1.0, -1.0], [2.0, 0.5]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    task_losses(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), mask)[0].sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert (logits.grad[mask] != 0).all()


def test_each_loss_is_divided_by_its_own_count_and_weighted() -> None:
    sums = torch.tensor([6.0, 8.0, 10.0], requires_grad=True)
    counts = torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    with process_group():
        loss = global_loss(LossSums(sums, counts), weights)
    assert loss.means.tolist() == [2.0, 4.0, 10.0]
    assert loss.to_backpropagate.item() == pytest.approx(2.0 + 4.0 + 0.5 * 10.0)
    loss.to_backpropagate.backward()
    assert sums.grad is not None
    torch.testing.assert_close(sums.grad, torch.tensor([1 / 3, 1 / 2, 0.5]))


@pytest.fixture
def make_rows(synthetic_dataset, synthetic_folder):
    tasks = load_tasks(synthetic_folder / "schema.toml")
    requests = build_requests(synthetic_dataset, tasks, "train", RequestConfig(per_profile=1))
    return lambda features: RowMaker(synthetic_dataset, features).rows(requests)


@pytest.mark.parametrize("tower", ["decoder", "pooled"])
def test_the_shares_of_a_batch_add_up_to_it(make_assembly, make_rows, tower) -> None:
    assembly = make_assembly(tower)
    rows = make_rows(assembly.features)
    model = RankerWithLoss(assembly.model, LossConfig())

    def losses(share: Rows) -> LossSums:
        return model(model_inputs(assembly.features, share), targets(share, tokens_per_request=4))

    everything = np.arange(len(rows))
    whole = losses(rows)
    halves = [losses(rows.take(everything[:7])), losses(rows.take(everything[7:]))]
    torch.testing.assert_close(whole.sums, halves[0].sums + halves[1].sums)
    assert torch.equal(whole.counts, halves[0].counts + halves[1].counts)
    assert whole.counts[0] == len(rows.item_rows)
    assert model.names == ("watch", "like", "next_item")[: 3 if tower == "decoder" else 2]
    assert (whole.counts > 0).all()


def test_each_newest_token_is_to_predict_the_event_that_follows_it(make_assembly, make_rows) -> None:
    features = make_assembly("decoder").features
    rows = make_rows(features)
    told = targets(rows, tokens_per_request=3)
    inputs = model_inputs(features, rows).profile
    expected_tokens, expected_items = [], []
    first = 0
    for request, length in enumerate(rows.history_lengths):
        start = rows.histories.history_offsets[request]
        items = [*rows.histories.history.item[start : start + length], rows.next_event.item[request]]
        newest = range(max(0, length - 2), length + 1)
        expected_tokens += [first + place for place in newest]
        expected_items += [items[place] for place in newest]
        first += length + 1
    assert told.tokens.tolist() == expected_tokens
    assert told.next_item.tolist() == expected_items
    assert set(inputs.last_index.tolist()) <= set(expected_tokens)
    # A token reads the item before the one that it predicts.
    read = inputs.item_ids[told.tokens]
    follows = told.tokens[1:] == told.tokens[:-1] + 1
    assert torch.equal(read[1:][follows], told.next_item[:-1][follows])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"next_item_weight": -1.0}, "next_item_weight is -1.0"),
        ({"tokens_per_request": 0}, "tokens_per_request"),
    ],
)
def test_settings_out_of_range_are_named(change, named) -> None:
    with pytest.raises(ValueError, match=named):
        LossConfig(**change)
