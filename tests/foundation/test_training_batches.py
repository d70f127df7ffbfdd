"""Training windows: right starts, never past the cut, each once per epoch, reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.split import TRAIN, profile_roles, training_mask
from foundation.training_batches import (
    Batch,
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
    latest_share=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_an_epoch_holds_one_valid_window_per_profile(
    num_events, window, block, tokens_per_batch, epoch, latest_share
):
    config = WindowConfig(window, min(block, window))
    histories = _histories(num_events)
    batches = epoch_batches(histories, config, tokens_per_batch, 5, epoch, latest_share)
    starts = np.concatenate([batch.starts for batch in batches])
    stops = np.concatenate([batch.stops for batch in batches])
    order = np.argsort(starts)
    starts, stops = starts[order] - histories.first_row, stops[order] - histories.first_row
    latest = window_start(histories.num_events - 1, config.window, config.block)

    assert np.all(starts % config.block == 0)
    assert np.all(starts == latest) if latest_share == 1 else np.all(starts <= latest)
    assert np.all(stops == np.minimum(histories.num_events, starts + config.window + 1))
    assert all(batch.num_tokens <= tokens_per_batch + config.window + 1 for batch in batches)
    assert 0 <= padding_share(batches) < 1


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 201), max_size=40), count=st.integers(1, 6))
def test_each_window_of_a_batch_is_in_exactly_one_part(lengths, count):
    stops = np.cumsum(lengths, dtype=np.int64)
    batch = Batch(stops - np.array(lengths, dtype=np.int64), stops)
    parts = batch.parts(count)
    assert len(parts) == count
    together = np.concatenate([np.stack([part.starts, part.stops]) for part in parts], axis=1)
    assert np.array_equal(np.sort(together, axis=1), np.stack(batch))
    # In order of length, and about equal tokens.
    in_order = np.concatenate([part.stops - part.starts for part in parts])
    assert np.all(np.diff(in_order) >= 0)
    longest = max(lengths, default=0)
    assert all(abs(part.num_tokens - batch.num_tokens / count) <= longest for part in parts)
    assert padding_share([batch], count) <= padding_share([batch]) + 1e-12


def test_parts_of_a_batch_by_hand():
    batch = Batch(np.array([0, 30, 40, 70]), np.array([30, 40, 70, 90]))  # 30, 10, 30 and 20 tokens
    first, second = batch.parts(2)
    assert (first.starts.tolist(), second.starts.tolist()) == ([30, 70], [0, 40])
    assert [part.num_tokens for part in Batch(np.array([5]), np.array([9])).parts(3)] == [0, 4, 0]


@settings(max_examples=30, deadline=None)
@given(
    num_events=st.lists(st.integers(1, 300), min_size=1, max_size=20),
    window=st.integers(2, 25),
    block=st.integers(1, 25),
    latest_share=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_every_training_event_is_a_target_over_enough_epochs(num_events, window, block, latest_share, seed):
    config = WindowConfig(window, min(block, window))
    histories = _histories(num_events)
    seen = np.zeros(histories.first_row[-1] + histories.num_events[-1], dtype=int)
    most_starts = 1 + max(num_events) // config.block
    for epoch in range(4 * most_starts + (40 * most_starts if latest_share else 0)):
        windows = draw_windows(histories, config, seed, epoch, latest_share)
        for start, stop in zip(windows.starts, windows.stops, strict=True):
            seen[start:stop] += 1
    for first, count in zip(histories.first_row, histories.num_events, strict=True):
        assert seen[first : first + count].min() >= 1
    assert seen.sum() == sum(seen[a : a + n].sum() for a, n in zip(*histories, strict=True))


def test_windows_are_spread_over_a_long_profile_within_few_epochs():
    histories = _histories([2_300] * 50)
    config = WindowConfig(200, 40)
    epochs = 24  # two windows of 200 to each 200 events
    starts = np.stack([draw_windows(histories, config, 0, epoch).starts for epoch in range(epochs)])
    gaps = np.diff(np.sort(starts, axis=0), axis=0)
    assert gaps.max() <= 200


def test_every_start_up_to_the_latest_is_drawn_about_as_often():
    histories = _histories([50] * 400)
    windows = draw_windows(histories, WindowConfig(20, 10), seed=0, epoch=3)
    starts, counts = np.unique(windows.starts - histories.first_row, return_counts=True)
    assert starts.tolist() == [0, 10, 20, 30]
    assert counts.min() > 60


def test_a_share_of_the_profiles_show_their_latest_window_others_each_epoch():
    histories = _histories([500] * 1_000)
    config = WindowConfig(20, 10)
    latest = histories.first_row + 480
    shown = [draw_windows(histories, config, 1, epoch, 0.3).starts == latest for epoch in (0, 1)]
    assert all(270 < each.sum() < 390 for each in shown)
    assert 50 < (shown[0] & shown[1]).sum() < 160


def test_progressive_windows_grow_in_equal_shares_of_the_epochs():
    config = BatchConfig(progressive=(10, 50, 200))
    windows = [config.window(WindowConfig(200, 40), epoch, 6) for epoch in range(6)]
    assert [each.window for each in windows] == [10, 10, 50, 50, 200, 200]
    assert [each.block for each in windows] == [10, 10, 40, 40, 40, 40]
    assert BatchConfig().window(WindowConfig(200, 40), 0, 6) == WindowConfig(200, 40)


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


@pytest.mark.parametrize("tokens_per_batch", [1_500, 3_000, 6_000])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_less_than_five_percent_is_padding_on_lengths_like_movielens(tokens_per_batch, parts):
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(4.6, 1.0, size=6_000)), 20, 2_300).astype(int)
    batches = epoch_batches(_histories(lengths.tolist()), WindowConfig(200, 40), tokens_per_batch, 0, 0)
    assert padding_share(batches, parts) < 0.05


def test_profiles_meet_others_in_another_epoch():
    histories = _histories(np.random.default_rng(0).integers(20, 190, size=2_000).tolist())
    config = WindowConfig(200, 40)
    batch, *_ = epoch_batches(histories, config, 3_000, 0, 0)
    others = [set(each.starts) & set(batch.starts) for each in epoch_batches(histories, config, 3_000, 0, 1)]
    assert max(len(each) for each in others) < 0.8 * len(batch.starts)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0; it must be at least 1"),
        ({"parts": 0}, "parts is 0; it must be at least 1"),
        ({"latest_share": 1.5}, "latest_share is 1.5"),
        ({"progressive": (50, 50)}, "progressive is .*grow"),
        ({"progressive": (0, 50)}, "progressive is .*at least 1"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        BatchConfig(**change)
