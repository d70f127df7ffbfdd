"""Losses: masks, sums and counts, and that a rank's share of labels doesn't change what is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.objectives.heads import build_heads
from foundation.vocabulary import FIRST_KNOWN
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks
from ranker.training.losses import LossConfig, LossSums, RankerWithLoss, global_loss, task_losses
from ranker.training.sharding import process_group
from ranker.training.targets import HeadLabels, targets


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


def test_labels_of_heads_are_of_the_event_that_follows(make_assembly, make_rows, release) -> None:
    features = make_assembly("decoder").features
    rows = make_rows(features)
    heads = build_heads(["duration", "next.gap"], features.tokenizer, 16)
    assert heads is not None
    feature_rows = release.model.item_tower.feature_rows.numpy()
    read = HeadLabels(heads.labels, features.tokenizer, feature_rows)
    few, all_of_them = targets(rows, 3, None, read).heads, targets(rows, 99, None, read).heads
    assert few is not None
    assert all_of_them is not None
    told, whole = targets(rows, 3), targets(rows, 99)
    # Which of all tokens the newest are: each is told the same, however many are asked for.
    place = torch.searchsorted(whole.tokens, told.tokens)
    assert all(torch.equal(few[name], all_of_them[name][place]) for name in few)
    duration = heads.labels[0]
    of_next = rows.next_event.outcome_side[:, duration.columns[0]] - duration.first_row
    newest = torch.searchsorted(told.tokens, model_inputs(features, rows).profile.last_index)
    assert few["duration"][newest, 0].tolist() == np.where(of_next >= 0, of_next, -1).tolist()
    assert (few["next.gap"][newest] == -1).all(), "nothing is known behind the next event"


def test_multi_token_targets_end_with_the_first_event_behind_the_request(make_assembly, make_rows) -> None:
    features = make_assembly("decoder").features
    rows = make_rows(features)
    loss = LossConfig(multi_token_horizon=2, multi_token_half_life_s=1e6)
    told = targets(rows, 4, loss.multi_token)
    assert told.pairs is not None
    expected = []
    ends = np.cumsum(np.minimum(rows.history_lengths + 1, 4))
    for place, item in enumerate(told.next_item.tolist()):
        expected += [(place, item)] * (item >= FIRST_KNOWN)
        following = int(told.next_item[place + 1]) if place + 1 not in ends else 0
        expected += [(place, following)] * (following >= FIRST_KNOWN)
    assert list(zip(told.pairs.token.tolist(), told.pairs.item.tolist(), strict=True)) == expected
    assert told.pairs.weight.max() == 1.0
    assert told.pairs.weight.min() < 1.0


def test_a_horizon_of_one_is_the_next_item(make_assembly, make_rows) -> None:
    assembly = make_assembly("decoder")
    rows = make_rows(assembly.features)
    model, inputs = RankerWithLoss(assembly.model, LossConfig()), model_inputs(assembly.features, rows)
    one = model(inputs, targets(rows, 4, LossConfig(multi_token_horizon=1).multi_token))
    two = model(inputs, targets(rows, 4, LossConfig(multi_token_horizon=2).multi_token))
    next_item = model(inputs, targets(rows, 4))
    torch.testing.assert_close(one.sums, next_item.sums)
    assert torch.equal(one.counts, next_item.counts)
    assert two.sums[2] > 1.5 * next_item.sums[2]


def test_both_modes_have_a_loss_for_each_task(make_assembly, make_rows) -> None:
    assembly = make_assembly("decoder", crossing_layers=1)
    rows = make_rows(assembly.features)
    model, inputs = RankerWithLoss(assembly.model, LossConfig()), model_inputs(assembly.features, rows)
    told = targets(rows, 4)
    assert model.names == ("watch", "like", "watch_crossing", "like_crossing", "next_item")
    assert model.weights == (1.0, 1.0, 1.0, 1.0, 0.1)
    found = model(inputs, told)
    for mode, logits in zip((slice(0, 2), slice(2, 4)), assembly.model.both_logits(inputs), strict=True):
        assert logits is not None
        sums, counts = task_losses(logits, told.labels, told.mask)
        torch.testing.assert_close(found.sums[mode], sums)
        assert torch.equal(found.counts[mode], counts)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"next_item_weight": -1.0}, "next_item_weight is -1.0"),
        ({"tokens_per_request": 0}, "tokens_per_request"),
        ({"multi_token_horizon": -1}, "multi_token_horizon is -1; it must be at least 0"),
        ({"head_weight": -0.1}, "head_weight is -0.1"),
    ],
)
def test_settings_out_of_range_are_named(change, named) -> None:
    with pytest.raises(ValueError, match=named):
        LossConfig(**change)
