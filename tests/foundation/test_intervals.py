"""Bootstrap intervals against a loop that draws one profile after the other, and where they must lie."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foundation.intervals import mean_intervals


def test_intervals_equal_those_of_a_plain_loop():
    values = np.random.default_rng(3).random(17)
    drawn = np.random.default_rng(5).integers(17, size=(40, 17))
    means = sorted(sum(values[i] for i in sample) / 17 for sample in drawn)
    expected = [
        means[math.floor(q * 39)]
        + (q * 39 - math.floor(q * 39)) * (means[math.floor(q * 39) + 1] - means[math.floor(q * 39)])
        for q in (0.025, 0.975)
    ]
    assert mean_intervals({"mrr": values}, seed=5, num_samples=40)["mrr"] == pytest.approx(expected)


def test_the_width_of_a_share_is_that_of_the_binomial():
    """A share of 0.2 of 2,000 profiles: 1.96 standard errors of sqrt(0.2 * 0.8 / 2000)."""
    hits = (np.arange(2_000) % 5 == 0).astype(np.float64)
    low, high = mean_intervals({"hr@10": hits})["hr@10"]
    half = 1.96 * math.sqrt(0.2 * 0.8 / 2_000)
    assert low == pytest.approx(0.2 - half, abs=0.15 * half)
    assert high == pytest.approx(0.2 + half, abs=0.15 * half)


def test_a_seed_gives_the_same_interval_twice_and_all_figures_the_same_draws():
    values = {"one": np.random.default_rng(0).random(50), "two": np.random.default_rng(1).random(50)}
    both = mean_intervals(values, seed=2)
    assert both == mean_intervals(values, seed=2)
    assert both["two"] == pytest.approx(mean_intervals({"two": values["two"]}, seed=2)["two"])
    assert both != mean_intervals(values, seed=3)


def test_one_value_has_no_width():
    assert mean_intervals({"mrr": np.full(4, 0.25)})["mrr"] == (0.25, 0.25)
