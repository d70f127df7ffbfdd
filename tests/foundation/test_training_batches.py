"""Training windows: right starts, never past the cut, each once per epoch, reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.split import TRAIN, profile_roles, training_mask
from foundation.training_batches import (
    BatchConfig,
    TrainingHistories,
    draw_windows,
    epoch_batches,
    padding_share,
    training_histories,
)
from foundation.window import WindowConfig, window_start


def _histories(num_events: list[int]) -> TrainingHistories:
    counts = np.array(num_events, dtype=np.int64)
    return TrainingHistories(np.cumsum(counts + 3) - counts - 3, counts)


@settings(max_examples=60, deadline=None)
@given(
    num_events=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    window=st.integers(1, 25),
    block=st.integers(1, 25),
    tokens_per_batch=st.integers(1, 200),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_one_valid_window_per_profile(num_events, window, block, tokens_per_batch, epoch):
    config = WindowConfig(window, min(block, window))
    histories = _histories(num_events)
    batches = epoch_batches(histories, config, tokens_per_batch, seed=5, epoch=epoch)
    starts = np.concatenate([batch.starts for batch in batches])
    stops = np.concatenate([batch.stops for batch in batches])
    order = np.argsort(starts)
    starts, stops = starts[order] - histories.first_row, stops[order] - histories.first_row

    assert np.all(starts % config.block == 0)
    assert np.all(starts <= window_start(histories.num_events - 1, config.window, config.block))
    assert np.all(stops == np.minimum(histories.num_events, starts + config.window + 1))
    assert all(batch.num_tokens <= tokens_per_batch + config.window + 1 for batch in batches)
    assert 0 <= padding_share(batches) < 1


def test_every_start_up_to_the_latest_is_drawn():
    histories = _histories([50] * 400)
    windows = draw_windows(histories, WindowConfig(20, 10), np.random.default_rng(0))
    starts, counts = np.unique(windows.starts - histories.first_row, return_counts=True)
    assert starts.tolist() == [0, 10, 20, 30]
    assert counts.min() > 60


def test_batches_follow_from_seed_and_epoch_alone():
    histories = _histories(list(range(1, 120)))
    config = WindowConfig(20, 5)

    def plan(seed, epoch):
        return [
            (b.starts.tolist(), b.stops.tolist()) for b in epoch_batches(histories, config, 300, seed, epoch)
        ]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


def test_similar_lengths_share_a_batch():
    lengths = np.random.default_rng(0).integers(5, 200, size=2_000)
    batches = epoch_batches(_histories(lengths.tolist()), WindowConfig(200, 40), 4_000, 0, 0)
    unsorted_share = 1 - lengths.mean() / lengths.max()
    assert padding_share(batches) < 0.2 < unsorted_share


def test_training_histories_hold_training_events_and_no_others(synthetic_dataset):
    histories = training_histories(synthetic_dataset)
    rows = np.concatenate(
        [
            np.arange(first, first + n)
            for first, n in zip(histories.first_row, histories.num_events, strict=True)
        ]
    )
    assert np.array_equal(np.sort(rows), np.flatnonzero(training_mask(synthetic_dataset)))
    assert len(histories.first_row) <= (profile_roles(synthetic_dataset) == TRAIN).sum()
    assert len(rows) < 0.8 * synthetic_dataset.num_events


def test_tokens_per_batch_must_be_positive():
    with pytest.raises(ValueError, match="tokens_per_batch is 0"):
        BatchConfig(0)
