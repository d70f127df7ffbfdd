"""Percentiles by hand, against NumPy's nearest rank, and the ratio's interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.percentiles import percentile, ratio_of_medians, summarise


@pytest.mark.parametrize(
    ("samples", "q", "expected"),
    [
        ([7.0], 50, 7.0),
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 51, 3.0),
        (list(range(1, 101)), 95, 95),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 101)), 100, 100),
        (list(range(1, 201)), 99, 198),
        (list(range(1, 21)), 99, 20),
    ],
)
def test_percentile_by_hand(samples: list[float], q: float, expected: float) -> None:
    assert percentile(samples, q) == expected


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=300),
    st.sampled_from([1, 25, 50, 95, 99, 100]),
)
def test_percentile_is_a_sample_that_enough_samples_do_not_exceed(samples: list[float], q: int) -> None:
    found = percentile(samples, q)
    assert found in samples
    at_most = sum(sample <= found for sample in samples)
    below = sum(sample < found for sample in samples)
    assert at_most * 100 >= q * len(samples) > below * 100


def test_percentile_needs_samples_and_a_share() -> None:
    with pytest.raises(ValueError, match="empty"):
        percentile([], 50)
    with pytest.raises(ValueError, match="q is 0"):
        percentile([1.0], 0)


def test_summary_is_in_milliseconds() -> None:
    summary = summarise(np.arange(1, 201) / 1000).to_json()
    assert summary == {"count": 200, "p50_ms": 100.0, "p95_ms": 190.0, "p99_ms": 198.0, "max_ms": 200.0}


def test_ratio_is_of_medians_and_its_interval_covers_it() -> None:
    ratio = ratio_of_medians([[4.0, 4.0], [6.0, 6.0], [4.0, 9.0]], [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]])
    assert ratio.value == 2.0
    assert 2.0 == ratio.low < ratio.high <= 4.5


def test_ratio_of_equally_disturbed_blocks_has_no_spread() -> None:
    ratio = ratio_of_medians([[4.0], [40.0], [12.0]], [[2.0], [20.0], [6.0]])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_ratio_refuses_unpaired_blocks() -> None:
    with pytest.raises(ValueError, match="2 blocks and fast has 1"):
        ratio_of_medians([[1.0], [2.0]], [[1.0]])
