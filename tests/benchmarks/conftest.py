"""A small ranker with random weights, and requests for it."""

from __future__ import annotations

import pytest

from benchmarks.held_out_requests import HeldOutConfig, HeldOutRequests, build_held_out_requests
from benchmarks.in_process import EagerRanker
from benchmarks.subject import Subject, random_subject
from foundation.decoder import DecoderConfig
from foundation.model import FoundationConfig
from foundation.sources.synthetic_world import SyntheticConfig
from foundation.window import WindowConfig

WINDOW = WindowConfig(window=12, block=4)


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("subject")
    config = FoundationConfig(DecoderConfig(width=16, num_layers=1, num_heads=2), WINDOW)
    world = SyntheticConfig(profiles=60, items=150, sessions=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARQUEE_HOME", str(folder / "home"))
        return random_subject(folder, world, config)


@pytest.fixture(scope="session")
def workload(subject: Subject) -> HeldOutRequests:
    """Six requests of natural length with 20 candidates each."""
    return build_held_out_requests(subject.dataset, WINDOW, HeldOutConfig(requests=6, candidates=20))


@pytest.fixture
def ranker(subject: Subject, workload: HeldOutRequests) -> EagerRanker:
    return EagerRanker(subject.loaded, workload, chunk=7)
