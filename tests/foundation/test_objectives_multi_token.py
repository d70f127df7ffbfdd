"""Multi-token prediction: which pairs, with which weights; and the loss, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.objectives.config import MultiTokenConfig
from foundation.objectives.multi_token import event_pairs
from foundation.objectives.softmax import item_set_loss, next_item_loss
from foundation.tokens import EventIds
from foundation.window import span_rows


def _events(item, timestamp) -> EventIds:
    nothing = np.zeros((len(item), 0), dtype=np.int64)
    return EventIds(np.array(item, np.int64), np.array(timestamp, np.int64), nothing, nothing)


class _Signal:
    """Stands for a looked-up signal: the given number of each event."""

    def __init__(self, numbers) -> None:
        self.numbers = np.array(numbers, dtype=np.float32)

    def weights(self, events, rows):
        return self.numbers[rows]


# Two profiles: rows 0..4 and rows 5..6. Windows: rows 1..2, of which training may see rows up to 3, and rows 5..6.
EVENTS = _events([2, 3, 4, 5, 6, 7, 8], [0, 100, 100, 300, 400, 0, 50])
SPAN = span_rows(np.array([1, 5]), np.array([3, 7]))
STOPS = np.array([4, 7])


def _pairs(config, signal=None, events=EVENTS):
    pairs = event_pairs(config, events, SPAN, STOPS, signal)
    return list(zip(pairs.token.tolist(), pairs.item.tolist(), pairs.weight.tolist(), strict=True))


def test_pairs_reach_behind_the_window_but_not_behind_what_training_may_see():
    assert _pairs(MultiTokenConfig(horizon=3)) == [
        *[(0, 3, 1.0), (0, 4, 1.0), (0, 5, 1.0)],
        *[(1, 4, 1.0), (1, 5, 1.0)],
        *[(2, 7, 1.0), (2, 8, 1.0)],
        (3, 8, 1.0),
    ]


def test_weights_by_hand():
    in_seconds = MultiTokenConfig(horizon=3, half_life=100.0)
    by_hand = [1.0, 1.0, 0.25, 1.0, 0.25, 1.0, 2**-0.5, 1.0]
    assert [weight for *_, weight in _pairs(in_seconds)] == pytest.approx(by_hand)
    in_events = MultiTokenConfig(horizon=3, half_life=1.0, half_life_unit="events")
    assert [weight for *_, weight in _pairs(in_events)] == pytest.approx([1, 0.5, 0.25, 1, 0.5, 1, 0.5, 1])
    signal = _Signal([9, 1, 2, 0, 9, 3, 4])
    by_hand = [(0, 3, 1.0), (0, 4, 2.0), (1, 4, 2.0), (2, 7, 3.0), (2, 8, 4 * 2**-0.5), (3, 8, 4.0)]
    for found, expected in zip(_pairs(in_seconds, signal), by_hand, strict=True):
        assert found == pytest.approx(expected)


def test_normalised_weights_by_hand():
    config = MultiTokenConfig(horizon=3, half_life=100.0, normalise=True)
    weights = [weight for *_, weight in _pairs(config)]
    later = 2**-0.5
    by_hand = [1 / 2.25, 1 / 2.25, 0.25 / 2.25, 0.8, 0.2, 1 / (1 + later), later / (1 + later), 1]
    assert weights == pytest.approx(by_hand)


def test_a_span_of_seconds_and_unknown_items():
    events = EVENTS._replace(item=np.array([2, 3, 0, 5, 6, 7, 8]))
    config = MultiTokenConfig(horizon=9, seconds=199.0)
    assert _pairs(config, events=events) == [(0, 3, 1.0), (2, 7, 1.0), (2, 8, 1.0), (3, 8, 1.0)]
    assert (0, 5, 1.0) in _pairs(MultiTokenConfig(horizon=9, seconds=200.0), events=events)


def test_the_loss_by_hand():
    """Cosines of the one token with the three items: 1, 0, -1; temperature 1; weights 1 and 1/2."""
    items = torch.tensor([[9.0, 9.0], [9.0, 9.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    events = _events([4, 3], [0, 60])
    config = MultiTokenConfig(horizon=2, half_life=60.0)
    span = span_rows(np.array([0]), np.array([1]))
    pairs = event_pairs(config, events, span, np.array([2]))
    loss, count = item_set_loss(torch.tensor([[4.0, 0.0]]), items, pairs, 1.0)
    log_partition = math.log(math.e + 1 + 1 / math.e)
    assert loss.item() == pytest.approx(1.0 * (log_partition + 1) + 0.5 * log_partition)
    assert count.item() == 1


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_horizon_of_one_is_next_item_training(lengths, seed):
    rng = np.random.default_rng(seed)
    stops = np.cumsum(lengths)
    events = _events(rng.integers(0, 9, stops[-1]), np.sort(rng.integers(0, 1000, stops[-1])))
    span = span_rows(stops - lengths, stops)
    pairs = event_pairs(MultiTokenConfig(horizon=1, half_life=5.0), events, span, stops)
    generator = torch.Generator().manual_seed(seed)
    hidden, items = torch.randn(stops[-1], 4, generator=generator), torch.randn(9, 4, generator=generator)
    loss, count = item_set_loss(hidden, items, pairs, 0.2)
    expected, expected_count = next_item_loss(hidden, items, torch.from_numpy(events.item[span.rows]), 0.2)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert count == expected_count


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5
    ),
    horizon=st.integers(1, 6),
    seconds=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_pairs_equal_a_loop_over_tokens_and_events(sizes, horizon, seconds, seed):
    """Profiles with events before the window, in it, behind it for training to see, and one held out."""
    rng = np.random.default_rng(seed)
    lengths = np.array([sum(size) + 1 for size in sizes])
    first = np.cumsum(lengths) - lengths
    timestamps = np.concatenate([np.sort(rng.integers(0, 9, length)) for length in lengths])
    events = _events(rng.integers(0, 6, lengths.sum()), timestamps)
    starts = first + [before for before, _, _ in sizes]
    ends = starts + [within for _, within, _ in sizes]
    stops = ends + [behind for *_, behind in sizes]
    config = MultiTokenConfig(horizon, seconds, half_life=2.0)
    expected, token = [], 0
    for start, end, stop in zip(starts, ends, stops, strict=True):
        for row in range(start, end):
            for later in range(row, min(stop, row + horizon)):
                elapsed = timestamps[later] - timestamps[row]
                if events.item[later] >= 2 and (not seconds or elapsed <= seconds):
                    expected.append((token, events.item[later], 0.5 ** (elapsed / 2.0)))
            token += 1
    pairs = event_pairs(config, events, span_rows(starts, ends), stops)
    assert pairs.token.tolist() == [token for token, _, _ in expected]
    assert pairs.item.tolist() == [item for _, item, _ in expected]
    assert pairs.weight.tolist() == pytest.approx([weight for *_, weight in expected])


@pytest.mark.parametrize(
    "fields", [{"horizon": -1}, {"seconds": -1.0}, {"half_life": -0.1}, {"half_life_unit": "days"}]
)
def test_config_errors_name_the_field(fields):
    with pytest.raises(ValueError, match=f"objective.multi_token.{next(iter(fields))}"):
        MultiTokenConfig(**fields)
