"""Signals: numbers of looked-up facets as weight, reward or mask, and what is wrong with a declaration."""

from __future__ import annotations

import numpy as np
import pytest

from foundation.objectives.config import SignalConfig
from foundation.objectives.signal import Signal
from foundation.raw_values import NO_NUMBER, NO_VALUE, hash_string

BOUNDARIES = (120.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0)  # of duration, in seconds


def _events(tokenizer, dataset, **facets):
    """Events with the given raw values of one facet and those of the first events otherwise."""
    num_events = len(next(iter(facets.values())))
    events = dataset.events
    raw = {name: column[:num_events] for name, column in events.facets.items()}
    raw |= {name: np.asarray(values).astype(raw[name].dtype) for name, values in facets.items()}
    return tokenizer.event_ids(events.item_id[:num_events], events.timestamp[:num_events], raw)


def _weights(config, tokenizer, events):
    return Signal(config, tokenizer).weights(events, np.arange(len(events.item))).tolist()


@pytest.fixture
def durations(synthetic_tokenizer, synthetic_dataset):
    """1, 20 and 400 minutes, not a number, no value."""
    values = np.array([60.0, 1200.0, 24000.0, np.nan, NO_NUMBER], dtype=np.float32)
    return _events(synthetic_tokenizer, synthetic_dataset, duration=values)


def test_a_number_is_the_lower_edge_of_its_bucket(synthetic_tokenizer, durations):
    config = SignalConfig("duration", scale=0.1 / 60)
    assert _weights(config, synthetic_tokenizer, durations) == pytest.approx([0, 1.5, 12, 0, 0])


def test_numbers_of_buckets_can_be_declared(synthetic_tokenizer, durations):
    values = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    config = SignalConfig("duration", values=values, missing=0.25)
    assert _weights(config, synthetic_tokenizer, durations) == [0.5, 3, 6, 0.25, 0.25]


def test_a_mask_keeps_events_at_or_above_its_threshold(synthetic_tokenizer, durations):
    config = SignalConfig("duration", "mask", threshold=900.0)
    assert _weights(config, synthetic_tokenizer, durations) == [0, 1, 1, 0, 0]
    above = SignalConfig("duration", "mask", threshold=901.0, missing=1200.0)
    assert _weights(above, synthetic_tokenizer, durations) == [0, 0, 1, 1, 1]


def test_negative_numbers_are_no_weights_and_no_rewards(synthetic_tokenizer, durations):
    values = (-2.0, -1.0, 0.0, 1.0, 1.0, 1.0, 3.0)
    reward = SignalConfig("duration", "reward", values=values)
    assert _weights(reward, synthetic_tokenizer, durations) == [0, 1, 3, 0, 0]
    with pytest.raises(ValueError, match=r"'duration' a weight of -2.0; weights must be at least 0"):
        Signal(SignalConfig("duration", "weight", values=values), synthetic_tokenizer)


def test_categories_by_name(synthetic_tokenizer, synthetic_dataset):
    raw = synthetic_dataset.events.facets["action"]
    play = hash_string("play")
    other = raw[raw != play][0]
    events = _events(synthetic_tokenizer, synthetic_dataset, action=[play, other, NO_VALUE])
    config = SignalConfig("action", values=(2.5,), categories=("play",), missing=0.5)
    assert _weights(config, synthetic_tokenizer, events) == [2.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SignalConfig("rating"), r"signal.facet is 'rating'; the single-valued what facets .* are: position"),
        (SignalConfig("device"), r"signal.facet is 'device'"),
        (SignalConfig("audio_languages"), r"signal.facet is 'audio_languages'"),
        (SignalConfig("action"), r"'action' is categorical and needs categories and values"),
        (SignalConfig("action", values=(1.0,), categories=("sing",)), r"names 'sing'; no training event"),
        (SignalConfig("duration", values=(1.0,)), r"has 1 numbers; .* has 7 known values"),
        (SignalConfig("duration", values=(1.0,), categories=("1",)), r"is a number: leave it empty"),
    ],
)
def test_wrong_declarations(config, message, synthetic_tokenizer):
    with pytest.raises(ValueError, match=message):
        Signal(config, synthetic_tokenizer)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mode": "loud"}, "signal.mode"),
        ({"values": (1.0, 2.0), "categories": ("a",)}, "signal.categories"),
        ({"values": (1.0, 2.0), "categories": ("a", "a")}, "signal.categories"),
    ],
)
def test_config_errors_name_the_field(fields, name):
    with pytest.raises(ValueError, match=f"objective.{name}"):
        SignalConfig("action", **fields)
