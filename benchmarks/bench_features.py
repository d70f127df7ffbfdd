"""Micro-benchmarks of feature building: from raw values to model inputs."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import MakeRanker


@pytest.mark.parametrize("history", [20, 200])
def bench_tokenise(benchmark: BenchmarkFixture, make_ranker: MakeRanker, history: int) -> None:
    """A raw history to tokens, layout and profile features."""
    ranker = make_ranker(history, 10)
    inputs = benchmark(ranker.features.profile_inputs, ranker.histories[0])
    assert len(inputs.item_ids) == history + 1


@pytest.mark.parametrize("candidates", [50, 500])
def bench_look_up_candidates(benchmark: BenchmarkFixture, make_ranker: MakeRanker, candidates: int) -> None:
    """Raw candidate ids to item rows."""
    ranker = make_ranker(20, candidates)
    inputs = benchmark(ranker.features.candidate_inputs, ranker.candidates[0], np.array([candidates]))
    assert len(inputs.item_rows) == candidates
