"""Counters are read from the metrics page's text, and reported as differences."""

from __future__ import annotations

import pytest

from benchmarks.server_metrics import growth, parse_counters

PAGE = """\
# HELP nv_inference_count Number of inferences
# TYPE nv_inference_count counter
nv_inference_count{model="ranker",version="1"} 12
nv_inference_count{model="other",version="1"} 3
marquee_candidates_total{model="ranker"} 1.5e+03
process_open 4
"""


def test_samples_are_summed_over_their_labels() -> None:
    assert parse_counters(PAGE) == {
        "nv_inference_count": 15.0,
        "marquee_candidates_total": 1500.0,
        "process_open": 4.0,
    }


def test_growth_excludes_what_was_counted_before() -> None:
    before, after = {"requests": 7.0}, {"requests": 207.0, "profiles": 200.0}
    assert growth(before, after, "requests") == 200
    assert growth(before, after, "profiles") == 200


def test_a_missing_or_falling_counter_is_an_error() -> None:
    with pytest.raises(ValueError, match="no counter 'candidates'"):
        growth({}, {"requests": 1.0}, "candidates")
    with pytest.raises(ValueError, match="fell from 9"):
        growth({"requests": 9.0}, {"requests": 1.0}, "requests")
