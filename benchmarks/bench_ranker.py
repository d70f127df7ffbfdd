"""Micro-benchmarks of the two served graphs, as modules, and of whole requests in this process."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import MakeRanker
from benchmarks.in_process import EagerRanker
from benchmarks.subject import Subject
from serving.candidate_arguments import candidate_arguments
from serving.fuse import fuse
from serving.split import Halves, split


@pytest.fixture(scope="session")
def halves(subject: Subject) -> Halves:
    """Both graphs, with the reference first layer."""
    return split(subject.loaded.model)


@pytest.fixture(scope="session")
def fused_halves(subject: Subject) -> Halves:
    """Both graphs as they are exported."""
    fused = split(subject.loaded.model)
    assert fuse(fused).fused
    return fused


@torch.inference_mode()
def _rank(ranker: EagerRanker, halves: Halves) -> torch.Tensor:
    profile, candidates, _ = ranker.inputs(0)
    return halves.rank(profile, candidates)


@pytest.mark.parametrize("history", [20, 200])
@torch.inference_mode()
def bench_profile_graph(
    benchmark: BenchmarkFixture, make_ranker: MakeRanker, halves: Halves, history: int
) -> None:
    """One request's tokens and features to its profile vector."""
    state = benchmark(halves.profile, *make_ranker(history, 10).inputs(0).profile)
    assert len(state[0]) == 1


@pytest.mark.parametrize("candidates", [50, 500])
@torch.inference_mode()
def bench_candidate_graph(
    benchmark: BenchmarkFixture, make_ranker: MakeRanker, halves: Halves, candidates: int
) -> None:
    """A profile vector and item rows to logits, with the reference first layer."""
    profile, rows, _ = make_ranker(20, candidates).inputs(0)
    arguments = candidate_arguments(halves.profile(*profile), profile, rows)
    assert len(benchmark(halves.candidate, *arguments)[0]) == candidates


@pytest.mark.parametrize("candidates", [50, 500])
@torch.inference_mode()
def bench_fused_candidate_graph(
    benchmark: BenchmarkFixture, make_ranker: MakeRanker, fused_halves: Halves, candidates: int
) -> None:
    """A profile vector and item rows to logits, with the fused first layer."""
    profile, rows, _ = make_ranker(20, candidates).inputs(0)
    arguments = candidate_arguments(fused_halves.profile(*profile), profile, rows)
    assert len(benchmark(fused_halves.candidate, *arguments)[0]) == candidates


def bench_request(benchmark: BenchmarkFixture, make_ranker: MakeRanker) -> None:
    """Raw values to logits by the training graph, cut: 200 history events, 500 candidates."""
    assert len(benchmark(make_ranker(200, 500).split, 0)) == 500


def bench_served_request(benchmark: BenchmarkFixture, make_ranker: MakeRanker, fused_halves: Halves) -> None:
    """Raw values to logits by the graphs that are exported: 200 history events, 500 candidates."""
    assert len(benchmark(_rank, make_ranker(200, 500), fused_halves)) == 500
