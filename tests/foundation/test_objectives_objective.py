"""Intent and layer-wise supervision by hand, and the whole objective as the sum of its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from foundation.decoder import DecoderConfig
from foundation.intent import Intent
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.model import FoundationConfig, FoundationModel
from foundation.objectives.config import IntentConfig, MultiTokenConfig, ObjectiveConfig, SignalConfig
from foundation.objectives.labels import label_loss
from foundation.objectives.layer_wise import layer_wise_loss
from foundation.objectives.objective import LossSums, Objective, SampledItems, intent_label
from foundation.objectives.softmax import next_item_loss
from foundation.window import span_rows

WIDTH = 8
EVERYTHING = {
    "layer_weight": 0.5,
    "head_weight": 0.1,
    "heads": ("duration", "genres", "next.device", "next.gap"),
    "intent": IntentConfig("action", weight=0.3),
    "signal": SignalConfig("duration", scale=0.1 / 60, missing=1.0),
}
MODES = {
    "default": ObjectiveConfig(),
    "everything": ObjectiveConfig(**EVERYTHING),
    "multi-token": ObjectiveConfig(**EVERYTHING, multi_token=MultiTokenConfig(4, half_life=86_400.0)),
    "mask": ObjectiveConfig(signal=SignalConfig("duration", "mask", threshold=900.0)),
    "where intent": ObjectiveConfig(intent=IntentConfig("device")),
}


def _sampled(negatives: str, **fields) -> ObjectiveConfig:
    return ObjectiveConfig(softmax="sampled", negatives=negatives, num_negatives=20, **fields)  # type: ignore[arg-type]


@pytest.fixture
def build(synthetic_dataset, synthetic_tokenizer):
    """Gives the objective of a configuration, for a model of it, with the same weights each time."""

    def objective(config: ObjectiveConfig) -> Objective:
        torch.manual_seed(3)
        label = intent_label(config, synthetic_tokenizer)
        model = FoundationModel(
            FoundationConfig(
                DecoderConfig(width=WIDTH, num_layers=2, num_heads=1),
                intent_classes=0 if label is None else label.num_classes,
            ),
            synthetic_tokenizer.num_facet_rows,
            num_item_feature_rows(synthetic_dataset.schema, synthetic_tokenizer.vocabularies),
            item_facts(synthetic_tokenizer, synthetic_dataset.catalogue),
            synthetic_tokenizer.age_column,
        )
        return Objective(config, synthetic_tokenizer, model)

    return objective


@pytest.fixture
def span(synthetic_dataset):
    offsets = synthetic_dataset.events.offsets
    first = offsets[np.flatnonzero(np.diff(offsets) >= 8)[:3]]
    return span_rows(first, first + np.array([8, 5, 1]))


@pytest.fixture
def vectors(synthetic_vocabularies):
    return torch.randn(
        synthetic_vocabularies.items.num_rows, WIDTH, generator=torch.Generator().manual_seed(7)
    )


def _layers(num_tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_tokens)
    return tuple(torch.randn(num_tokens, WIDTH, generator=generator) for _ in range(3))


def _loss(objective, events, span, layers, vectors, competes=None) -> LossSums:
    targets = objective.targets(events, span)
    return objective.loss(layers, vectors, competes, 0.2, targets, torch.Generator().manual_seed(0))


def test_intent_by_hand():
    intent = Intent(2, num_classes=2)
    with torch.no_grad():
        intent.predict.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        intent.predict.bias.zero_()
        intent.embedding_CD.copy_(torch.tensor([[4.0, 0.0], [0.0, 8.0]]))
    # Odds 3 : 1, so 3/4 of the first embedding and 1/4 of the second are added.
    for_items, logits = intent(torch.tensor([[math.log(3.0), 0.5]]))
    assert for_items.tolist() == [pytest.approx([math.log(3.0) + 3.0, 0.5 + 2.0])]
    loss, count = label_loss(logits, torch.tensor([[1]]))
    assert loss.item() == pytest.approx(math.log(4))
    assert count.item() == 1


def test_layer_wise_by_hand():
    losses = [torch.tensor(value) for value in (8.0, 6.0, 3.0)]
    assert layer_wise_loss(losses, 0.5).item() == 3.0 + 0.5 * 7.0
    assert layer_wise_loss(losses, 0.0).item() == 3.0
    assert layer_wise_loss(losses[-1:], 0.5).item() == 3.0


def test_the_default_is_the_next_item_alone(build, synthetic_ids, span, vectors):
    objective, layers = build(ObjectiveConfig()), _layers(14)
    found = _loss(objective, synthetic_ids, span, layers, vectors)
    targets = torch.from_numpy(synthetic_ids.item[span.rows])
    expected, count = next_item_loss(layers[-1], vectors, targets, 0.2)
    assert torch.equal(found.total, expected)
    assert found.num_targets == count == 14
    assert {name: part.tolist() for name, part in found.parts.items()} == {"item": [expected.item(), 14.0]}
    assert not list(objective.parameters())


def test_the_total_is_the_weighted_sum_of_its_parts(build, synthetic_ids, span, vectors):
    objective = build(MODES["everything"])
    found = _loss(objective, synthetic_ids, span, _layers(14), vectors)
    parts = {name: part[0].item() for name, part in found.parts.items()}
    heads = [f"head.{name}" for name in EVERYTHING["heads"]]
    assert tuple(parts) == objective.part_names == ("item", "layers", "intent", *heads)
    by_hand = (
        parts["item"]
        + 0.5 * parts["layers"]
        + 0.3 * parts["intent"]
        + 0.1 * sum(parts[name] for name in heads)
    )
    assert found.total.item() == pytest.approx(by_hand, rel=1e-5)
    assert found.parts["head.next.gap"][1].item() == 14 - 3, "the last token of each window has no next one"


@pytest.mark.parametrize("mode", MODES)
def test_losses_and_gradients_of_parts_of_a_batch_add_up(mode, build, synthetic_ids, span, vectors):
    """Sums over sequences, however they are spread over processes."""
    starts = span.rows[np.cumsum(span.lengths) - span.lengths]
    pieces = [span_rows(starts[:1], starts[:1] + 8), span_rows(starts[1:], starts[1:] + [5, 1])]
    whole_layers = _layers(14)
    piece_layers = [tuple(layer[:8] for layer in whole_layers), tuple(layer[8:] for layer in whole_layers)]

    def run(spans, layers):
        objective, keys = build(MODES[mode]), vectors.clone().requires_grad_()
        losses = [_loss(objective, synthetic_ids, *each, keys) for each in zip(spans, layers, strict=True)]
        total = torch.stack([each.total for each in losses]).sum()
        gradients = torch.autograd.grad(total, (keys, *objective.parameters()))
        return total, sum(int(each.num_targets) for each in losses), gradients

    total, count, gradients = run(pieces, piece_layers)
    expected, expected_count, expected_gradients = run([span], [whole_layers])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)
    assert count == expected_count
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_the_intent_shifts_what_items_are_compared_with(build, synthetic_ids, span, vectors):
    objective, layers = build(ObjectiveConfig(intent=IntentConfig("genres", weight=0.0))), _layers(14)
    found = _loss(objective, synthetic_ids, span, layers, vectors)
    targets = torch.from_numpy(synthetic_ids.item[span.rows])
    assert objective.intent is not None
    expected, _ = next_item_loss(objective.intent(layers[-1])[0], vectors, targets, 0.2)
    torch.testing.assert_close(found.total, expected)
    assert found.total.item() != next_item_loss(layers[-1], vectors, targets, 0.2)[0].item()


def test_signals_weigh_targets_of_the_next_item(build, synthetic_ids, span, vectors):
    config = ObjectiveConfig(signal=SignalConfig("duration", "mask", threshold=900.0))
    objective = build(config)
    targets = objective.targets(synthetic_ids, span)
    assert set(targets.weight.tolist()) == {0.0, 1.0}
    found = _loss(objective, synthetic_ids, span, _layers(14), vectors)
    kept = targets.weight > 0
    expected, count = next_item_loss(_layers(14)[-1][kept], vectors, targets.item[kept], 0.2)
    torch.testing.assert_close(found.total, expected)
    assert found.num_targets == count == int(kept.sum())


@pytest.mark.parametrize("negatives", ["uniform", "in_batch", "mixed"])
@pytest.mark.parametrize("log_q", [True, False])
def test_sampled_modes_train_every_layer_and_leave_out_who_does_not_compete(
    negatives, log_q, build, synthetic_ids, span, vectors
):
    objective = build(_sampled(negatives, log_q=log_q, layer_weight=1.0))
    items = synthetic_ids.item[span.rows]
    competes = torch.ones(len(vectors), dtype=torch.bool)
    competes[int(items[0])] = False
    layers = tuple(layer.requires_grad_() for layer in _layers(14))
    keys = vectors.clone().requires_grad_()
    found = _loss(objective, synthetic_ids, span, layers, keys, competes)
    found.total.backward()
    assert found.num_targets.item() == int((items != items[0]).sum())
    assert keys.grad is not None
    assert torch.count_nonzero(keys.grad[[0, 1, int(items[0])]]) == 0
    for layer in layers:
        assert layer.grad is not None
        assert torch.count_nonzero(layer.grad[1:]) > 0


@pytest.mark.parametrize("negatives", ["uniform", "in_batch", "mixed"])
def test_vectors_of_the_rows_at_hand_are_enough(negatives, build, synthetic_ids, span, vectors):
    """As where the item table is spread over processes: history, targets and negatives are fetched, and no more."""
    objective = build(_sampled(negatives, log_q=True))
    targets, layers = objective.targets(synthetic_ids, span), _layers(14)
    expected = _loss(objective, synthetic_ids, span, layers, vectors)
    drawn = objective.negatives(targets, len(vectors), None, torch.Generator().manual_seed(0))
    rows = torch.unique(torch.cat([targets.item, drawn.rows]))
    assert len(rows) < len(vectors)
    found = objective.loss(
        layers, vectors[rows], None, 0.2, targets, torch.Generator(), SampledItems(drawn, rows)
    )
    assert torch.equal(found.total, expected.total)
    assert found.num_targets == expected.num_targets


def test_in_batch_negatives_of_one_profile_alone_are_none(build, synthetic_ids, span, vectors):
    alone = span_rows(span.rows[:1], span.rows[:1] + 8)
    masked = _loss(build(_sampled("in_batch")), synthetic_ids, alone, _layers(8), vectors)
    assert masked.total.item() == pytest.approx(0.0, abs=1e-5)
    unmasked = _loss(
        build(_sampled("in_batch", mask_profile=False)), synthetic_ids, alone, _layers(8), vectors
    )
    assert unmasked.total.item() > 1


def test_an_empty_part_of_a_batch_costs_nothing(build, synthetic_ids, vectors):
    empty = span_rows(np.empty(0, np.int64), np.empty(0, np.int64))
    for config in (*MODES.values(), _sampled("mixed", log_q=True)):
        found = _loss(build(config), synthetic_ids, empty, _layers(0), vectors)
        assert found.total.item() == 0
        assert found.num_targets.item() == 0


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"negatives": "hard"}, "negatives"),
        ({"masked_share": 1.0}, "masked_share"),
        ({"layer_weight": -0.1}, "layer_weight"),
        ({"head_weight": -1.0}, "head_weight"),
        ({"heads": ("genres", "genres")}, "heads"),
        ({"softmax": "sampled", "multi_token": MultiTokenConfig(horizon=2)}, "softmax"),
    ],
)
def test_config_errors_name_the_field(fields, name):
    with pytest.raises(ValueError, match=f"objective.{name} is"):
        ObjectiveConfig(**fields)


def test_wrong_names_say_which_field_names_them(build):
    with pytest.raises(ValueError, match=r"objective.intent.label names 'mood'.*action.*device"):
        build(ObjectiveConfig(intent=IntentConfig("mood")))
    with pytest.raises(ValueError, match=r"objective\.intent\.weight"):
        IntentConfig("action", weight=-1.0)
