"""A ranker of the demo's size with random weights, and requests for it, for the micro-benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.held_out_requests import HeldOutConfig, build_held_out_requests
from benchmarks.in_process import EagerRanker
from benchmarks.subject import Subject, random_subject
from foundation.sources.synthetic_world import SyntheticConfig

MakeRanker = Callable[[int, int], EagerRanker]


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The ranker; its world is small, so that it is made in seconds."""
    world = SyntheticConfig(profiles=60, items=1_000, sessions=70)
    return random_subject(tmp_path_factory.mktemp("subject"), world)


@pytest.fixture(scope="session")
def make_ranker(subject: Subject) -> MakeRanker:
    """Makes the ranker with requests of so many history events and so many candidates."""

    def make(history: int, candidates: int) -> EagerRanker:
        config = HeldOutConfig(requests=4, candidates=candidates, history=history)
        window = subject.loaded.features.config.window
        return EagerRanker(subject.loaded, build_held_out_requests(subject.dataset, window, config))

    return make
