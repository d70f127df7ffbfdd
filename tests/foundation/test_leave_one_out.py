"""Ranks and metrics against hand-counted ones, and against the path that a served request takes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import leave_one_out
from foundation.dataset import Dataset, load_dataset
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.layout import layout
from foundation.leave_one_out import (
    last_events,
    model_ranks,
    popularity_ranks,
    rank_tested,
    ranking_metrics,
    ranks,
)
from foundation.model import FoundationConfig, FoundationModel
from foundation.pretraining import build_model
from foundation.split import TEST, TRAIN, profile_roles
from foundation.tokenizer import Tokenizer, history_tokens
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN, build_vocabularies
from foundation.window import WindowConfig, window_start

NOTHING_SEEN = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)


def test_ranks_by_hand():
    #                 oov  start  a    b    c    d    e
    scores = torch.tensor([[9.0, 9.0, 0.5, 0.9, 0.7, 0.7, 0.1]] * 3)
    targets = torch.tensor([4, 5, 6])  # c, d, e
    assert ranks(scores, targets, NOTHING_SEEN).tolist() == [1, 2, 4]
    seen = (
        torch.tensor([0, 2, 2]),
        torch.tensor([3, 2, 6]),
    )  # b for the first; a, and the target itself, for the third
    assert ranks(scores, targets, seen).tolist() == [0, 2, 3]


def test_equal_scores_rank_in_row_order():
    scores = torch.zeros(5, 7)
    assert ranks(scores, torch.arange(2, 7), NOTHING_SEEN).tolist() == [0, 1, 2, 3, 4]


def test_ranks_leave_the_scores_as_they_are():
    scores = torch.rand(2, 6)
    before = scores.clone()
    ranks(scores, torch.tensor([3, 4]), (torch.tensor([0]), torch.tensor([5])))
    assert torch.equal(scores, before)


def test_metrics_by_hand():
    metrics = ranking_metrics(torch.tensor([0, 1, 9, 10, 300]))
    assert metrics["hr@1"] == pytest.approx(1 / 5)
    assert metrics["hr@10"] == pytest.approx(3 / 5)
    assert metrics["hr@50"] == metrics["hr@200"] == pytest.approx(4 / 5)
    assert metrics["ndcg@1"] == pytest.approx(1 / 5)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(11)) / 5)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11 + 1 / 301) / 5)


@pytest.fixture(scope="module")
def tokenizer(synthetic_dataset) -> Tokenizer:
    return Tokenizer(synthetic_dataset.schema, build_vocabularies(synthetic_dataset))


@pytest.fixture(scope="module")
def events(synthetic_dataset, tokenizer) -> EventIds:
    raw = synthetic_dataset.events
    return tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)


def test_popularity_counts_training_events_alone(synthetic_dataset, tokenizer, events):
    tested = last_events(synthetic_dataset, events, TEST)
    num_rows = tokenizer.vocabularies.items.num_rows
    counts = [0] * num_rows
    offsets = synthetic_dataset.offsets
    for profile, role in enumerate(profile_roles(synthetic_dataset)):
        if role == TRAIN:
            num_events = offsets[profile + 1] - offsets[profile]
            for row in range(offsets[profile], offsets[profile] + math.floor(0.8 * num_events)):
                counts[events.item[row]] += 1
    expected = []
    for first, last in zip(*tested, strict=True):
        seen, target = set(events.item[first:last].tolist()), int(events.item[last])
        shown = [i for i in range(FIRST_KNOWN, num_rows) if i not in seen or i == target]
        expected.append(sorted(shown, key=lambda i: (-counts[i], i)).index(target))
    found = popularity_ranks(synthetic_dataset, events, tested, num_rows)
    assert found.tolist() == expected
    assert len(expected) == (profile_roles(synthetic_dataset) == TEST).sum()


def test_model_ranks_equal_a_request_of_the_same_moment(synthetic_dataset, tokenizer, events):
    """A request carries its time, its when and where facets and its history: nothing of the tested event."""
    window = WindowConfig(12, 4)
    torch.manual_seed(0)
    config = FoundationConfig(DecoderConfig(width=16, num_layers=1), window=window)
    model = build_model(config, tokenizer, synthetic_dataset)
    raw = synthetic_dataset.events
    tested = last_events(synthetic_dataset, events, TEST)
    expected = []
    for first, last in zip(*tested, strict=True):
        kept = first + int(window_start(last - first, window.window, window.block))
        history = EventIds(*(part[kept:last] for part in events))
        request_facets = {name: values[last : last + 1] for name, values in raw.facets.items()}
        request = tokenizer.request_ids(raw.timestamp[last : last + 1], request_facets)
        tokens = history_tokens(tokenizer, history, np.array([0, last - kept]), request)
        where = layout(torch.from_numpy(tokens.lengths))
        with torch.no_grad():
            model.eval()
            items = model.item_vectors()
            hidden = model(
                torch.from_numpy(tokens.facet_ids), torch.from_numpy(tokens.item_ids), where, items
            )
            logits = model.logits(model.profile_vector(hidden, where), items.vectors)
        target = torch.from_numpy(events.item[last : last + 1])
        seen = torch.from_numpy(events.item[first:last])
        expected.append(int(ranks(logits, target, (torch.zeros_like(seen), seen))))
    model.train()
    found, loss = model_ranks(model, tokenizer, events, tested)
    assert found.tolist() == expected
    assert len(set(expected)) > 1
    assert math.isfinite(loss)
    assert loss > 0
    assert model.training


def test_profiles_without_a_history_or_a_known_last_item_are_left_out(synthetic_dataset, events):
    tested = last_events(synthetic_dataset, events, TEST)
    unknown = events.item.copy()
    unknown[tested.last_row[0]] = 0
    without = last_events(synthetic_dataset, events._replace(item=unknown), TEST)
    assert without.last_row.tolist() == tested.last_row[1:].tolist()
    assert (without.last_row > without.first_row).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_equal_a_plain_sort_with_many_ties(data):
    """Scores take three values; each sequence leaves out some items, at times its target, repeated or not."""
    num_rows = data.draw(st.integers(3, 12))
    scores = data.draw(
        st.lists(st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows), min_size=1, max_size=4)
    )
    targets = [data.draw(st.integers(FIRST_KNOWN, num_rows - 1)) for _ in scores]
    histories = [data.draw(st.lists(st.integers(0, num_rows - 1), max_size=6)) for _ in scores]
    expected = []
    for row, target, history in zip(scores, targets, histories, strict=True):
        shown = [item for item in range(FIRST_KNOWN, num_rows) if item == target or item not in history]
        expected.append(sorted(shown, key=lambda item, row=row: (-row[item], item)).index(target))
    pairs = [(b, item) for b, history in enumerate(histories) for item in history]
    seen = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    found = ranks(torch.tensor(scores).float(), torch.tensor(targets), (seen[0], seen[1]))
    assert found.tolist() == expected


@pytest.fixture(scope="module")
def everyone(synthetic_folder) -> Dataset:
    return load_dataset(synthetic_folder, "last-two")


@pytest.fixture(scope="module")
def model(synthetic_dataset, tokenizer) -> FoundationModel:
    torch.manual_seed(1)
    config = FoundationConfig(DecoderConfig(width=16, num_layers=1), window=WindowConfig(12, 4))
    return build_model(config, tokenizer, synthetic_dataset)


def test_chunks_change_no_figure(everyone, tokenizer, events, model, monkeypatch):
    """Profiles are ranked in chunks of like lengths; each alone, and all at once, must give the same."""
    tested = last_events(everyone, events, TEST)
    together = rank_tested(model, tokenizer, events, tested, num_top=7)
    assert len(together.ranks) == everyone.num_profiles
    monkeypatch.setattr(leave_one_out, "_PROFILES_PER_CHUNK", 1)
    alone = rank_tested(model, tokenizer, events, tested, num_top=7)
    assert torch.equal(alone.ranks, together.ranks)
    torch.testing.assert_close(alone.losses, together.losses, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone.top_rows, together.top_rows)
    torch.testing.assert_close(alone.top_scores, together.top_scores, rtol=1e-5, atol=1e-5)


def test_the_top_holds_the_target_at_its_rank_and_nothing_seen_before(everyone, tokenizer, events, model):
    tested = last_events(everyone, events, TEST)
    num_items = everyone.num_items
    ranking = rank_tested(model, tokenizer, events, tested, num_top=num_items + 50)
    assert ranking.top_rows.shape == (len(tested.last_row), num_items)
    for profile, (first, last) in enumerate(zip(*tested, strict=True)):
        target, history = int(events.item[last]), set(events.item[first:last].tolist())
        top = ranking.top_rows[profile]
        shown = top[top > 0].tolist()
        assert sorted(shown) == sorted((set(range(FIRST_KNOWN, num_items + 2)) - history) | {target})
        assert top[len(shown) :].eq(0).all()
        scores = ranking.top_scores[profile, : len(shown)].tolist()
        assert scores == sorted(scores, reverse=True)
        assert shown[int(ranking.ranks[profile])] == target


def test_the_order_of_equal_scores_is_that_of_the_rows(everyone, tokenizer, events, model):
    """Without weights every item scores the same."""
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    tested = last_events(everyone, events, TEST)
    ranking = rank_tested(blank, tokenizer, events, tested, num_top=20)
    for profile, (first, last) in enumerate(zip(*tested, strict=True)):
        seen = set(events.item[first:last].tolist()) - {int(events.item[last])}
        shown = [row for row in range(FIRST_KNOWN, everyone.num_items + 2) if row not in seen]
        assert ranking.top_rows[profile].tolist() == shown[:20]
        assert int(ranking.ranks[profile]) == shown.index(int(events.item[last]))


def test_the_loss_is_the_cross_entropy_of_the_tested_items_alone(everyone, tokenizer, events, model):
    tested = last_events(everyone, events, TEST)
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    _, loss = model_ranks(blank, tokenizer, events, tested)
    assert loss == pytest.approx(math.log(everyone.num_items), rel=1e-5)


def test_scores_that_are_not_numbers_are_an_error_and_no_perfect_rank(everyone, tokenizer, events, model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.item_tower.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="scores are not all numbers"):
        rank_tested(broken, tokenizer, events, last_events(everyone, events, TEST))
