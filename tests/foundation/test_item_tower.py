"""The item tower: id and semantics mixed by a gate that sees counts and ages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from foundation.item_features import item_facts
from foundation.item_tower import ItemFacts, ItemTower, count_bucket
from foundation.masking import LEAST_COLD_SHARE, cold_share, hidden_items, mask_context
from foundation.raw_values import NO_VALUE
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, START, build_vocabularies

FACTS = ItemFacts(
    feature_rows=torch.tensor([[0, 0], [0, 0], [3, 0], [1, 2], [1, 0]]),
    counts=torch.tensor([0, 1, 100, 1, 0]),
    age_rows=torch.tensor([0, 0, 3, 2, 1]),
    content=torch.eye(5, 6),
)


@pytest.fixture
def tower() -> ItemTower:
    torch.manual_seed(0)
    tower = ItemTower(FACTS, num_feature_rows=4, num_facet_rows=5, width=7)
    with torch.no_grad():
        tower.age_gate.weight.normal_()
        tower.unseen.normal_()
    return tower


def by_hand(tower: ItemTower, item: int, count: int, age_row: int) -> torch.Tensor:
    values = tower.feature_embedding.weight
    metadata = {0: [], 1: [], 2: [3], 3: [1, 2], 4: [1]}[item]
    semantic = torch.stack([values[row] for row in metadata]).mean(0) if metadata else torch.zeros(7)
    assert tower.content_projection is not None
    semantic = semantic + tower.content_projection.weight[:, item]
    bucket = 0 if count == 0 else int(np.floor(np.log2(count))) + 1
    gate = torch.sigmoid(tower.count_gate.weight[bucket, 0] + tower.age_gate.weight[age_row, 0])
    ids = tower.id_embedding.weight[item] if count else tower.unseen
    return gate * ids + (1 - gate) * semantic


def test_vectors_are_the_gated_mix(tower):
    vectors = tower().vectors
    for item, (count, age) in enumerate(zip(FACTS.counts.tolist(), FACTS.age_rows.tolist(), strict=True)):
        torch.testing.assert_close(vectors[item], by_hand(tower, item, count, age))


def test_a_token_sees_its_item_as_old_as_it_was(tower):
    items = tower()
    item_ids, age_rows = torch.tensor([3, 2, 3]), torch.tensor([4, 3, 0])
    aged = items.at_event(item_ids, age_rows)
    for found, item, age in zip(aged, item_ids.tolist(), age_rows.tolist(), strict=True):
        torch.testing.assert_close(found, by_hand(tower, item, int(FACTS.counts[item]), age))
    torch.testing.assert_close(aged[1], items.vectors[2])


def test_a_hidden_item_is_one_never_seen(tower):
    hidden = torch.tensor([False, False, True, False, False])
    vectors = tower(hidden=hidden).vectors
    torch.testing.assert_close(vectors[2], by_hand(tower, 2, 0, 3))
    assert torch.equal(vectors[3:], tower().vectors[3:])


def test_an_item_never_seen_keeps_its_own_id_out_of_its_vector(tower):
    before = tower().vectors.detach().clone()
    with torch.no_grad():
        tower.id_embedding.weight[4] += 100
    assert torch.equal(tower().vectors, before)


def test_chosen_rows_are_those_of_all(tower):
    rows = torch.tensor([3, 1, 3])
    every, chosen = tower(), tower(rows)
    for whole, part in zip(every[:-1], chosen[:-1], strict=True):
        torch.testing.assert_close(part, whole[rows])
    elsewhere = tower(rows, ids=tower.id_embedding.weight[rows])
    torch.testing.assert_close(elsewhere.vectors, chosen.vectors)


def test_count_buckets_double():
    counts = torch.tensor([0, 1, 2, 3, 4, 7, 8, 1 << 20, (1 << 62)])
    assert count_bucket(counts).tolist() == [0, 1, 2, 2, 3, 3, 4, 21, 31]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "feature_rows",
            torch.zeros(5, 0),
            r"feature_rows must have shape \[I, M\] with M >= 1, got \(5, 0\)",
        ),
        ("counts", torch.zeros(4), r"counts must have shape \[5\].*got \(4,\)"),
        ("content", torch.zeros(3, 2), r"content must have shape \[5, E\], got \(3, 2\)"),
    ],
)
def test_facts_of_other_shapes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        ItemTower(FACTS._replace(**{field: value}), 4, 5, 7)


def test_facts_of_a_catalogue(synthetic_dataset, synthetic_tokenizer):
    content = np.random.default_rng(0).random((len(synthetic_dataset.catalogue.item_id), 3), dtype=np.float32)
    catalogue = dataclasses.replace(synthetic_dataset.catalogue, content_embedding=content)
    facts = item_facts(synthetic_tokenizer, catalogue)
    vocabularies = synthetic_tokenizer.vocabularies
    assert facts.counts[OUT_OF_VOCABULARY] == 0
    assert facts.counts[START] > 0
    np.testing.assert_array_equal(facts.counts[FIRST_KNOWN:], vocabularies.item_counts[FIRST_KNOWN:])
    np.testing.assert_array_equal(facts.content[FIRST_KNOWN:], content)
    assert not facts.content[:FIRST_KNOWN].any()
    assert facts.age_rows.shape == facts.counts.shape


def test_the_oldest_launches_have_the_highest_age_rows(synthetic_dataset):
    vocabularies = build_vocabularies(synthetic_dataset)
    days = np.array([NO_VALUE, NO_VALUE, *(np.arange(len(vocabularies.item_counts) - 2) % 50 * 86_400)])
    launched_at = np.where(days == NO_VALUE, NO_VALUE, vocabularies.last_timestamp - days)
    known = dataclasses.replace(vocabularies, launched_at=launched_at)
    tokenizer = Tokenizer(synthetic_dataset.schema, known)
    rows = tokenizer.age_rows(known.last_timestamp)
    assert not rows[:FIRST_KNOWN].any()
    by_age = rows[FIRST_KNOWN:][np.argsort(days[FIRST_KNOWN:], kind="stable")]
    assert (np.diff(by_age) >= 0).all()
    assert by_age[0] < by_age[-1] < tokenizer.num_facet_rows


def test_the_cold_share_is_that_of_the_newest_tenth():
    items = np.array([2, 3, 4, 2, 3, 4, 2, 3, 4, 2] * 2)
    timestamps = np.arange(20)
    items[19] = 9  # of the two newest events one is of a title that never came before
    assert cold_share(items, timestamps) == 0.5
    order = np.random.default_rng(0).permutation(20)
    assert cold_share(items[order], timestamps[order]) == 0.5
    assert cold_share(items[:10], timestamps[:10]) == LEAST_COLD_SHARE
    assert cold_share(items[:1], timestamps[:1]) == LEAST_COLD_SHARE


def test_items_are_hidden_at_their_share_and_markers_never():
    hidden = hidden_items(100_002, 0.3, np.random.default_rng(0))
    assert not hidden[:FIRST_KNOWN].any()
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not hidden_items(50, 0.0, np.random.default_rng(0)).any()


def test_a_masked_context_loses_all_of_it_and_nothing_else():
    facet_ids = np.arange(1, 4_001).reshape(1_000, 4)
    before = facet_ids.copy()
    mask_context(facet_ids, slice(1, 3), 0.1, np.random.default_rng(0))
    masked = (facet_ids[:, 1:3] == 0).all(axis=1)
    assert masked.mean() == pytest.approx(0.1, abs=0.03)
    np.testing.assert_array_equal(facet_ids[~masked], before[~masked])
    np.testing.assert_array_equal(facet_ids[:, [0, 3]], before[:, [0, 3]])


def test_vectors_made_without_gradients_ask_for_none(tower):
    with torch.no_grad():
        assert not any(each.requires_grad for each in tower())
