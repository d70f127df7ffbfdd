"""Micro-benchmarks of feature building: from raw values to model inputs."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import MakeRanker
from benchmarks.subject import Subject
from foundation.window import span_rows


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


def bench_tokenise_events(benchmark: BenchmarkFixture, subject: Subject) -> None:
    """Every event of the world to tokens, as before training; `extra_info` has the events."""
    tokenizer, events = subject.loaded.features.tokenizer, subject.dataset.events
    span = span_rows(events.offsets[:-1], events.offsets[1:])

    def tokenise() -> int:
        ids = tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
        facet_ids, _ = tokenizer.assemble(ids, span.rows, span.previous)
        return len(facet_ids)

    benchmark.extra_info["events"] = len(events.item_id)
    assert benchmark(tokenise) == len(events.item_id)
