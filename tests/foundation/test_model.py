"""The foundation model: gradients, ragged batches, logits, and its export at other sizes than it was traced with."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.export import Dim, export

from foundation.decoder import DecoderConfig
from foundation.item_features import catalogue_feature_rows, num_item_feature_rows
from foundation.item_tower import ItemFacts, ItemVectors
from foundation.layout import Layout, layout
from foundation.model import FoundationConfig, FoundationModel, unit
from foundation.pretraining import build_model
from foundation.vocabulary import FIRST_KNOWN, START
from foundation.window import WindowConfig, span_rows


@pytest.fixture
def batch_of(synthetic_dataset, synthetic_tokenizer, synthetic_ids):
    """A function from lengths to (facet_ids, item_ids, layout): the first events of as many profiles."""

    def make(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, Layout]:
        offsets = synthetic_dataset.offsets
        profiles = np.flatnonzero(np.diff(offsets) >= max(lengths))[: len(lengths)]
        assert len(profiles) == len(lengths)
        span = span_rows(offsets[profiles], offsets[profiles] + lengths)
        facet_ids, item_ids = synthetic_tokenizer.assemble(synthetic_ids, span.rows, span.previous)
        batch = layout(torch.from_numpy(span.lengths))
        return torch.from_numpy(facet_ids), torch.from_numpy(item_ids), batch

    return make


def _assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [7, 1, 4], [0, 3, 0, 5], [12, 12]])
def test_a_packed_batch_equals_each_history_alone(small_model, batch_of, lengths):
    model = small_model.double()
    facet_ids, item_ids, batch = batch_of(lengths)
    with torch.no_grad():
        item_vectors = model.item_vectors()
        together = model(facet_ids, item_ids, batch, item_vectors)
        parts = zip(facet_ids.split(lengths), item_ids.split(lengths), together.split(lengths), strict=True)
        for facets, items, expected in parts:
            if len(items):
                alone = model(facets, items, layout(torch.tensor([len(items)])), item_vectors)
                torch.testing.assert_close(alone, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sample_lengths", [[5, 3], [2, 7, 1]])
def test_an_exported_model_runs_at_other_sizes(small_model, batch_of, sample_lengths):
    model = small_model
    with torch.no_grad():
        item_vectors = model.item_vectors()
    tokens, sequences, longest = Dim("T", min=1), Dim("B", min=1), Dim("S", min=1)
    layout_dims = ({0: sequences, 1: longest}, {0: tokens}, {0: tokens}, {0: sequences})
    with torch.no_grad():
        program = export(
            model,
            (*batch_of(sample_lengths), item_vectors),
            dynamic_shapes=(
                {0: tokens},
                {0: tokens},
                Layout._make(layout_dims),
                ItemVectors._make([None] * 5),
            ),
        )
        exported = program.module()
        for lengths in ([1], [2], [9], [1, 1], [4, 1, 12, 2], [3] * 8):
            arguments = (*batch_of(lengths), item_vectors)
            _assert_same(exported(*arguments), model(*arguments))


def test_every_parameter_learns(small_model, batch_of):
    model = small_model
    facet_ids, item_ids, batch = batch_of([6, 9])
    item_vectors = model.item_vectors()
    hidden = model(facet_ids, item_ids, batch, item_vectors)
    targets = torch.arange(FIRST_KNOWN, FIRST_KNOWN + len(hidden))
    torch.nn.functional.cross_entropy(model.logits(hidden, item_vectors.vectors), targets).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    ids = model.item_tower.id_embedding.weight.grad.abs().sum(dim=1)
    assert ids[START] > 0, "the start marker is an input, though never a target"
    # Where an item was never seen in training, the shared id stands in for its own.
    assert torch.equal(ids > 0, model.item_tower.counts > 0)


def test_padding_rows_stay_zero_in_training(small_model, batch_of):
    model = small_model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    facet_ids, item_ids, batch = batch_of([6, 9])
    assert (facet_ids == 0).any()
    for _ in range(3):
        optimizer.zero_grad()
        model(facet_ids, item_ids, batch, model.item_vectors()).pow(3).sum().backward()
        optimizer.step()
    assert not model.facet_embedding.weight[0].any()
    assert not model.item_tower.feature_embedding.weight[0].any()


def test_a_few_steps_learn_to_predict_a_batch(
    synthetic_dataset, synthetic_tokenizer, synthetic_ids, batch_of
):
    config = FoundationConfig(DecoderConfig(width=32, dropout=0.0))
    torch.manual_seed(0)
    model = build_model(config, synthetic_tokenizer, synthetic_dataset)
    lengths = [12] * 8
    facet_ids, item_ids, batch = batch_of(lengths)
    profiles = np.flatnonzero(np.diff(synthetic_dataset.offsets) >= 12)[:8]
    span = span_rows(synthetic_dataset.offsets[profiles], synthetic_dataset.offsets[profiles] + 12)
    targets = torch.from_numpy(synthetic_ids.item[span.rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        items = model.item_vectors()
        logits = model.logits(model(facet_ids, item_ids, batch, items), items.vectors)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    uniform = np.log(len(synthetic_dataset.catalogue.item_id))
    assert losses[-1] < 0.3 * uniform < losses[0]


def test_logits_are_cosines_over_the_temperature_of_real_items_alone(small_model):
    config = dataclasses.replace(small_model.config, temperature=0.25)
    hidden, item_vectors = torch.randn(2, 3, 16), torch.randn(9, 16)
    rows = torch.ones(9, dtype=torch.int64)
    model = FoundationModel(config, 3, 2, ItemFacts(rows[:, None], rows, rows, torch.empty(9, 0)))
    logits = model.logits(hidden, item_vectors)
    cosines = torch.nn.functional.cosine_similarity(hidden[..., None, :], item_vectors, dim=-1)
    assert logits.shape == (2, 3, 9)
    assert torch.isneginf(logits[..., :FIRST_KNOWN]).all()
    torch.testing.assert_close(logits[..., FIRST_KNOWN:], cosines[..., FIRST_KNOWN:] / 0.25)


def test_profile_vector_is_the_last_hidden_state(small_model):
    hidden = torch.randn(6, 16)
    assert torch.equal(small_model.profile_vector(hidden, layout(torch.tensor([2, 1, 3]))), hidden[[1, 2, 5]])


def test_unit_vectors_have_finite_gradients_at_zero():
    x = torch.stack((torch.zeros(4), torch.tensor([3.0, 0, 4, 0]))).requires_grad_()
    y = unit(x)
    torch.testing.assert_close(y[1].detach(), torch.tensor([0.6, 0, 0.8, 0]))
    y.sum().backward()
    assert not y[0].any()
    assert x.grad is not None
    assert x.grad.abs().max() <= 1e4


def test_catalogue_rows_point_at_each_item_s_own_values(synthetic_dataset, synthetic_vocabularies):
    schema, catalogue = synthetic_dataset.schema, synthetic_dataset.catalogue
    rows = catalogue_feature_rows(schema, synthetic_vocabularies, catalogue)
    widths = [feature.max_values if feature.kind == "multi" else 1 for feature in schema.item_features]
    assert rows.shape == (synthetic_vocabularies.items.num_rows, sum(widths))
    assert not rows[:FIRST_KNOWN].any()
    assert rows.max() < num_item_feature_rows(schema, synthetic_vocabularies)
    first_row = 1
    for feature, columns in zip(
        schema.item_features, np.split(rows[FIRST_KNOWN:], np.cumsum(widths)[:-1], axis=1), strict=True
    ):
        lookup = synthetic_vocabularies.item_features[feature.name]
        ids = lookup.lookup(catalogue.features[feature.name]).reshape(columns.shape)
        np.testing.assert_array_equal(np.where(columns == 0, -1, columns - first_row), ids)
        first_row += lookup.num_rows


def test_a_schema_without_item_features_has_one_empty_column(synthetic_dataset, synthetic_vocabularies):
    schema = dataclasses.replace(synthetic_dataset.schema, item_features=())
    rows = catalogue_feature_rows(schema, synthetic_vocabularies, synthetic_dataset.catalogue)
    assert rows.shape == (synthetic_vocabularies.items.num_rows, 1)
    assert not rows.any()


def test_config_survives_json():
    config = FoundationConfig(DecoderConfig(width=48, num_heads=3), WindowConfig(30, 5), temperature=0.1)
    assert FoundationConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        FoundationConfig(temperature=0)
    with pytest.raises(ValueError, match="intent_classes must be >= 0, got -1"):
        FoundationConfig(intent_classes=-1)
