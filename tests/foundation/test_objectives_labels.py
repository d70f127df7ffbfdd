"""What heads are to predict, their loss by hand, and that none of them has seen it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from foundation.item_features import catalogue_feature_rows
from foundation.layout import layout
from foundation.objectives.heads import Heads, build_heads
from foundation.objectives.labels import LabelColumns, label_columns, label_loss, token_labels
from foundation.schema import Feature
from foundation.time_facets import gap_bucket
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, Vocabulary
from foundation.window import span_rows

NAMES = ("action", "duration", "audio_languages", "genres", "languages", "next.device", "next.gap")


@pytest.fixture
def feature_rows(synthetic_dataset, synthetic_vocabularies):
    return catalogue_feature_rows(
        synthetic_dataset.schema, synthetic_vocabularies, synthetic_dataset.catalogue
    )


@pytest.fixture
def span(synthetic_dataset):
    """The first events of three profiles."""
    offsets = synthetic_dataset.events.offsets
    first = offsets[np.flatnonzero(np.diff(offsets) >= 8)[:3]]
    return span_rows(first, first + np.array([8, 5, 1]))


def _labels(names, tokenizer, events, span, feature_rows):
    offered = label_columns(tokenizer)
    return token_labels([offered[name] for name in names], tokenizer, events, span, feature_rows)


def test_labels_are_the_classes_of_raw_values(
    synthetic_dataset, synthetic_tokenizer, synthetic_ids, span, feature_rows
):
    labels = _labels(NAMES, synthetic_tokenizer, synthetic_ids, span, feature_rows)
    dataset, vocabularies = synthetic_dataset, synthetic_tokenizer.vocabularies

    def classes(lookup, raw):
        return np.maximum(lookup.lookup(raw) - FIRST_KNOWN, -1)

    for name in ("action", "duration", "audio_languages"):
        expected = classes(vocabularies.facets[name], dataset.events.facets[name][span.rows])
        np.testing.assert_array_equal(labels[name], expected.reshape(len(span.rows), -1), err_msg=name)
    for name in ("genres", "languages"):
        raw = dataset.catalogue.features[name][synthetic_ids.item[span.rows] - FIRST_KNOWN]
        np.testing.assert_array_equal(labels[name], classes(vocabularies.item_features[name], raw))
    is_last = np.isin(np.arange(14), [7, 12, 13])
    device = classes(vocabularies.facets["device"], dataset.events.facets["device"][span.rows + 1])
    np.testing.assert_array_equal(labels["next.device"][:, 0], np.where(is_last, -1, device))
    gap = gap_bucket(dataset.events.timestamp[span.rows + 1] - dataset.events.timestamp[span.rows])
    np.testing.assert_array_equal(labels["next.gap"][:, 0], np.where(is_last, -1, gap))


def test_every_label_of_the_schema_has_classes_within_range(
    synthetic_tokenizer, synthetic_ids, span, feature_rows
):
    offered = label_columns(synthetic_tokenizer, own_request=True)
    labels = token_labels(list(offered.values()), synthetic_tokenizer, synthetic_ids, span, feature_rows)
    for name, label in offered.items():
        assert labels[name].shape == (14, len(label.columns))
        assert labels[name].min() >= -1
        assert labels[name].max() < label.num_classes
        assert (labels[name] >= 0).any(), name


def test_an_own_request_label_is_the_next_label_of_the_token_before(
    synthetic_tokenizer, synthetic_ids, span, feature_rows
):
    offered = label_columns(synthetic_tokenizer, own_request=True)
    chosen = [offered["device"], offered["next.device"]]
    labels = token_labels(chosen, synthetic_tokenizer, synthetic_ids, span, feature_rows)
    np.testing.assert_array_equal(labels["device"][1:8], labels["next.device"][:7])


def test_a_wrong_name_is_told_the_valid_ones(synthetic_tokenizer):
    with pytest.raises(ValueError, match=r"objective.heads names 'device'.*action.*genres.*next.device"):
        build_heads(("device",), synthetic_tokenizer, 4)
    assert build_heads((), synthetic_tokenizer, 4) is None


def test_an_item_feature_called_like_a_facet_gets_a_name_of_its_own(synthetic_tokenizer):
    features = (*synthetic_tokenizer.schema.item_features, Feature("device", "categorical", "device"))
    lookups = synthetic_tokenizer.vocabularies.item_features | {"device": Vocabulary(np.arange(5))}
    tokenizer = Tokenizer(
        replace(synthetic_tokenizer.schema, item_features=features),
        replace(synthetic_tokenizer.vocabularies, item_features=lookups),
    )
    for own_request in (False, True):
        offered = label_columns(tokenizer, own_request)
        assert offered["item.device"].source == "item"
        assert offered["item.device"].num_classes == 5
        assert ("device" in offered) == own_request


def test_label_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)], [1.0, 1.0, 1.0], [0.0, 5.0, 0.0]])
    labels = torch.tensor([[2, 0], [1, -1], [-1, -1]])
    loss, count = label_loss(logits, labels)
    # Token 0: probabilities 1/4, 1/4, 1/2, two labels that share it. Token 1: one of three. Token 2: none.
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4) + math.log(3))
    assert count.item() == 2


def _two_heads() -> Heads:
    return Heads(2, [LabelColumns("a", "outcome", (0,), 3, 2), LabelColumns("b", "item", (0, 1), 3, 3)])


def test_heads_by_hand():
    heads = _two_heads()
    with torch.no_grad():
        heads.project.weight.copy_(torch.tensor([[1.0, 0.0], [0, 0], [0, 0], [0, 1.0], [0, 0]]))
        heads.project.bias.copy_(torch.tensor([0.0, 0, 0, 0, 1.0]))
    losses = heads.loss(torch.tensor([[2.0, 3.0]]), {"a": torch.tensor([[1]]), "b": torch.tensor([[1, -1]])})
    assert losses["a"][0].item() == pytest.approx(math.log(math.exp(2) + 1))
    assert losses["b"][0].item() == pytest.approx(math.log(1 + math.exp(3) + math.exp(1)) - 3, rel=1e-5)
    assert [count.item() for _, count in losses.values()] == [1, 1]


def test_marginal_loss_by_hand():
    heads = _two_heads()
    training = {
        "a": torch.tensor([[0], [0], [0], [1], [-1]]),
        "b": torch.tensor([[0, 1], [2, -1], [-1, -1], [-1, -1], [-1, -1]]),
    }
    entropy_a = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    entropy_b = -(0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5))
    assert heads.marginal_loss(training) == pytest.approx({"a": entropy_a, "b": entropy_b})
    tested = {"a": torch.tensor([[1], [1]]), "b": torch.tensor([[-1, -1], [-1, -1]])}
    assert heads.marginal_loss(training, tested) == pytest.approx({"a": -math.log(0.25), "b": 0.0})
    unseen = {**training, "a": torch.tensor([[0], [0]])}
    assert heads.marginal_loss(unseen, tested)["a"] == pytest.approx(-math.log(1 / 3))


def test_the_best_constant_answer_of_a_head_is_its_marginal():
    """The loss of a head that says log frequencies, and no other constant, is the marginal loss."""
    labels = {
        "a": torch.tensor([[0], [1], [1]]),
        "b": torch.tensor([[0, 1], [2, -1], [1, -1]]),
    }
    heads = _two_heads()
    shares = torch.tensor([1 / 3, 2 / 3, 0.5 / 3, 1.5 / 3, 1 / 3])
    with torch.no_grad():
        heads.project.weight.zero_()
        heads.project.bias.copy_(shares.log())
    marginal = heads.marginal_loss(labels)
    for name, (loss, count) in heads.loss(torch.randn(3, 2), labels).items():
        assert loss.item() / count.item() == pytest.approx(marginal[name], rel=1e-5)
    with torch.no_grad():
        heads.project.bias.add_(torch.tensor([0.2, 0.0, 0.0, -0.1, 0.3]))
    for name, (loss, count) in heads.loss(torch.randn(3, 2), labels).items():
        assert loss.item() / count.item() > marginal[name]


def _logits(model, tokenizer, events, span, heads):
    facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
    where = layout(torch.from_numpy(span.lengths))
    with torch.no_grad():
        hidden = model(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), where, model.item_vectors())
        return heads(hidden)


def _with_another(label, events, row, tokenizer, feature_rows):
    """The events with another value of `label` at the token of `row`."""
    events = events._replace(**{name: column.copy() for name, column in events._asdict().items()})
    if label.source == "item":
        old = feature_rows[events.item[row]][list(label.columns)]
        differs = (feature_rows[FIRST_KNOWN:][:, list(label.columns)] != old).any(axis=1)
        events.item[row] = FIRST_KNOWN + np.flatnonzero(differs)[0]
    elif label.name == "next.gap":
        events.timestamp[row + 1 :] += 3_000_000
    else:
        side, row = (
            (events.outcome_side, row) if label.source == "outcome" else (events.request_side, row + 1)
        )
        old = side[row, label.columns[0]]
        side[row, label.columns[0]] = label.first_row + (old == label.first_row)
    return events


@pytest.mark.parametrize("name", NAMES)
def test_a_head_has_not_seen_its_own_target(
    name, small_model, synthetic_tokenizer, synthetic_ids, span, feature_rows
):
    torch.manual_seed(1)
    heads = build_heads(NAMES, synthetic_tokenizer, 16)
    assert heads is not None
    token, label = 4, label_columns(synthetic_tokenizer)[name]
    changed = _with_another(label, synthetic_ids, int(span.rows[token]), synthetic_tokenizer, feature_rows)
    before, after = (
        _labels([name], synthetic_tokenizer, each, span, feature_rows)[name]
        for each in (synthetic_ids, changed)
    )
    assert (before[token] != after[token]).any()
    old, new = (
        _logits(small_model, synthetic_tokenizer, each, span, heads)[name]
        for each in (synthetic_ids, changed)
    )
    assert torch.equal(old[: token + 1], new[: token + 1])
    assert not torch.equal(old[token + 1 : 8], new[token + 1 : 8]), "the next token does see it"
