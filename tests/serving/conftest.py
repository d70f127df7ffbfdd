"""Tiny rankers on the synthetic world, exported, and one real Triton Server for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from foundation.dataset import Dataset
from ranker.artifact import LoadedRanker, load_ranker
from serving.client import Client
from serving.parity import Rank, unsplit_rank
from serving.rank_request import History, RankRequest
from serving.repository import ExportConfig, export_repository
from serving.served_ranker import ServedRanker
from serving.server import Server, launch

MAX_CANDIDATES = 300
MakeRequest = Callable[..., RankRequest]


@pytest.fixture(scope="session")
def trained(ranker_folder: Callable[[str], Path]) -> LoadedRanker:
    return load_ranker(ranker_folder("decoder"))


@pytest.fixture(scope="session")
def repository(ranker_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of the decoder ranker."""
    out = tmp_path_factory.mktemp("served") / "repository"
    export_repository(ExportConfig(ranker_folder("decoder"), out, max_candidates=MAX_CANDIDATES))
    return out


@pytest.fixture(scope="session")
def model_folder(repository: Path) -> Path:
    return repository / "marquee" / "1"


@pytest.fixture(scope="session")
def served_ranker(model_folder: Path) -> ServedRanker:
    return ServedRanker(model_folder)


@pytest.fixture(scope="session")
def unsplit(trained: LoadedRanker, served_ranker: ServedRanker) -> Rank:
    """The reference of every served value: one row per candidate through the ranker as it was trained."""
    return unsplit_rank(trained.model, trained.features, served_ranker.contract)


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    with launch(repository, threads=1) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_url, timeout_s=20) as connected:
        yield connected


@pytest.fixture(scope="session")
def make_request(synthetic_dataset: Dataset) -> MakeRequest:
    """Makes the request of a profile after its first `num_events` events, with the catalogue's first candidates."""
    events, profiles = synthetic_dataset.events, synthetic_dataset.profiles
    longest = np.argsort(-np.diff(events.offsets), kind="stable")

    def make(num_events: int = 20, num_candidates: int = 10, profile: int = 0) -> RankRequest:
        row = int(longest[profile])
        first = int(events.offsets[row])
        at = first + num_events
        assert at < events.offsets[row + 1], "the profile has too few events"
        context = [facet.name for facet in synthetic_dataset.schema.facets_of("when", "where")]
        return RankRequest(
            timestamp=int(events.timestamp[at]),
            candidates=synthetic_dataset.catalogue.item_id[:num_candidates],
            history=History(
                events.item_id[first:at],
                events.timestamp[first:at],
                {name: values[first:at] for name, values in events.facets.items()},
            ),
            context={name: events.facets[name][at] for name in context},
            profile={name: values[row] for name, values in profiles.features.items()},
        )

    return make
