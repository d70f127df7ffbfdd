"""The window drops from the front in blocks; spans lay ranges end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.window import WindowConfig, span_rows, window_start

windows = st.integers(1, 60).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@given(st.lists(st.integers(0, 500), max_size=20), windows)
def test_start_is_the_rule_of_the_design(num_events, window_and_block):
    window, block = window_and_block
    expected = [max(0, math.ceil((n - window) / block) * block) for n in num_events]
    assert window_start(np.array(num_events, dtype=np.int64), window, block).tolist() == expected


@given(st.integers(0, 10_000), windows)
def test_kept_events_fill_the_window_up_to_a_block(num_events, window_and_block):
    window, block = window_and_block
    start = int(window_start(num_events, window, block))
    kept = num_events - start
    assert kept <= window
    assert kept == num_events if num_events <= window else kept > window - block
    assert start % block == 0


@given(st.integers(0, 500), windows)
def test_start_moves_once_in_a_block_of_events(first, window_and_block):
    window, block = window_and_block
    starts = window_start(np.arange(first, first + 2 * block + 1), window, block)
    steps = np.diff(starts)
    assert set(steps.tolist()) <= {0, block}
    if first >= window:
        assert (steps > 0).sum() == 2


@pytest.mark.parametrize(
    ("window", "block", "field"), [(0, 1, "window"), (10, 0, "block"), (10, 11, "block")]
)
def test_a_window_out_of_range_is_refused(window, block, field):
    with pytest.raises(ValueError, match=f"^{field} must be"):
        WindowConfig(window, block)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 7)), max_size=10))
def test_spans_are_their_ranges_end_to_end(ranges):
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    stops = np.array([start + length for start, length in ranges], dtype=np.int64)
    span = span_rows(starts, stops)
    expected = [list(range(start, start + length)) for start, length in ranges]
    assert span.rows.tolist() == [row for rows in expected for row in rows]
    assert span.previous.tolist() == [row for rows in expected for row in ([-1] + rows)[: len(rows)]]
    assert span.lengths.tolist() == [length for _, length in ranges]


def test_a_range_that_stops_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="range 1 stops at row 3, before its start 4"):
        span_rows(np.array([0, 4]), np.array([2, 3]))
