"""Micro-benchmarks of the ranker's two halves and of a whole request, eager and in this process."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import MakeRanker


@pytest.mark.parametrize("history", [20, 200])
@torch.no_grad()
def bench_profile_half(benchmark: BenchmarkFixture, make_ranker: MakeRanker, history: int) -> None:
    """`encode_profile` of one request."""
    ranker = make_ranker(history, 10)
    profile = ranker.inputs(0).profile
    state = benchmark(ranker.model.encode_profile, profile, ranker.item_vectors)
    assert len(state.vector) == 1


@pytest.mark.parametrize("candidates", [50, 500])
@torch.no_grad()
def bench_candidate_half(benchmark: BenchmarkFixture, make_ranker: MakeRanker, candidates: int) -> None:
    """`score` of one request's candidates."""
    ranker = make_ranker(20, candidates)
    profile, inputs = ranker.inputs(0)
    state = ranker.model.encode_profile(profile, ranker.item_vectors)
    logits = benchmark(ranker.model.score, state, inputs, ranker.item_vectors)
    assert len(logits) == candidates


def bench_request(benchmark: BenchmarkFixture, make_ranker: MakeRanker) -> None:
    """Raw values to logits: 200 history events, 500 candidates."""
    logits = benchmark(make_ranker(200, 500).split, 0)
    assert len(logits) == 500
