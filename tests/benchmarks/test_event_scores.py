"""Many events scored by one pass: the same as one pass each, and every drawn event once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import event_scores as module
from benchmarks.event_scores import Points, choose_points, event_scores, seen_before
from foundation.aggregation import AggregationConfig
from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.leave_one_out import LastEvents, rank_tested
from foundation.model import FoundationConfig, FoundationModel
from foundation.pretraining import build_model
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig


@pytest.fixture(scope="module")
def tokenizer(synthetic_dataset: Dataset) -> Tokenizer:
    return Tokenizer(synthetic_dataset.schema, build_vocabularies(synthetic_dataset))


@pytest.fixture(scope="module")
def events(synthetic_dataset: Dataset, tokenizer: Tokenizer) -> EventIds:
    raw = synthetic_dataset.events
    return tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)


def _model(dataset: Dataset, tokenizer: Tokenizer, config: FoundationConfig) -> FoundationModel:
    """Random and large weights, so that a wrong input shows."""
    torch.manual_seed(0)
    model = build_model(config, tokenizer, dataset).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def _every_event(dataset: Dataset) -> Points:
    return choose_points(dataset.offsets, np.ones(dataset.num_events, bool), 10**6, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("window", "decoder", "aggregation"),
    [
        (WindowConfig(8, 3), DecoderConfig(16, 2), AggregationConfig()),
        (WindowConfig(200, 40), DecoderConfig(16, 2), AggregationConfig("mean", 3)),
        (WindowConfig(5, 5), DecoderConfig(16, 1, block="hstu"), AggregationConfig()),
    ],
)
def test_one_pass_scores_as_one_pass_per_event(
    window: WindowConfig,
    decoder: DecoderConfig,
    aggregation: AggregationConfig,
    synthetic_dataset: Dataset,
    tokenizer: Tokenizer,
    events: EventIds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_TOKENS_PER_CHUNK", 60)
    monkeypatch.setattr(module, "_SCORES_PER_CHUNK", 2_000)
    model = _model(synthetic_dataset, tokenizer, FoundationConfig(decoder, window, aggregation))
    every = _every_event(synthetic_dataset)
    points = Points(every.first_row[::3], every.row[::3])
    losses = torch.full((len(points.row),), float("nan"))
    for places, logits in event_scores(model, tokenizer, events, points):
        targets = torch.from_numpy(events.item[points.row[places]])
        assert losses[places].isnan().all(), "an event was scored twice"
        losses[places] = nn.functional.cross_entropy(logits, targets, reduction="none")
    one_by_one = rank_tested(model, tokenizer, events, LastEvents(points.first_row, points.row)).losses
    assert one_by_one.std() > 0.5
    torch.testing.assert_close(losses.double(), one_by_one, atol=1e-4, rtol=1e-4)


def test_scores_that_are_no_numbers_are_refused(
    synthetic_dataset: Dataset, tokenizer: Tokenizer, events: EventIds
) -> None:
    model = _model(synthetic_dataset, tokenizer, FoundationConfig(DecoderConfig(16, 1)))
    with torch.no_grad():
        model.facet_embedding.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not all numbers"):
        list(event_scores(model, tokenizer, events, _every_event(synthetic_dataset)))


def test_points_are_wanted_events_with_a_history_and_not_too_many() -> None:
    offsets = np.array([0, 6, 7, 12])
    wanted = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0], dtype=bool)
    points = choose_points(offsets, wanted, 3, np.random.default_rng(0))
    assert len(points.row) == 4
    assert (points.first_row == [0, 0, 0, 7]).all()
    assert set(points.row[:3]) < {1, 2, 3, 4} and points.row[3] == 10
    assert (np.diff(points.row) > 0).all()
    draws = {tuple(choose_points(offsets, wanted, 3, np.random.default_rng(i)).row) for i in range(50)}
    assert len(draws) == 4


def test_seen_are_all_events_before() -> None:
    items = np.array([5, 6, 7, 8, 9])
    places, seen = seen_before(items, Points(np.array([0, 3]), np.array([2, 4])))
    assert places.tolist() == [0, 0, 1]
    assert seen.tolist() == [5, 6, 8]
