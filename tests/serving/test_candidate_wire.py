"""Features that a candidate has in one request only, from the caller to a real server; and what never travels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.dataset import Dataset
from foundation.release import load_release
from ranker.arches.interaction import InteractionConfig
from ranker.artifact import LoadedRanker, TrainedRanker, load_ranker, save_ranker
from ranker.assembly import assemble_on, row_features
from ranker.features.candidate_features import CandidateFeature, known_features
from ranker.model import RankerConfig
from ranker.schema import load_tasks
from ranker.state import Mode
from serving.client import Client
from serving.contract import Contract
from serving.parity import difference
from serving.probe import SERVED_TOLERANCE
from serving.rank_request import RankRequest, wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.server import launch
from serving.wire import histories_of

NUM_CANDIDATES = 6
KEPT = 0.25
"""Of the negatives of the first task."""
DECLARED = (
    CandidateFeature("retrieval", "numeric", "scores", boundaries=(0.25, 0.5, 0.75)),
    CandidateFeature("row", "categorical", "rows"),
    CandidateFeature("position", "categorical", "positions", training_only=True, at_serving=0),
)
SEEN: Mapping[str, NDArray] = {
    "retrieval": np.linspace(0, 1, 9, dtype=np.float32),
    "row": np.arange(4),
    "position": np.arange(20),
}
GIVEN = {"retrieval": [0.1, 0.9, 0.4, None, 0.6, 0.1], "row": [0, 1, 2, 3, None, 99]}


class Served(NamedTuple):
    """One ranker, trained and exported."""

    mode: Mode
    repository: Path
    trained: LoadedRanker
    contract: Contract

    def whole(self, request: RankRequest, **raw: Any) -> Tensor:
        """The trained ranker's logits, `raw` beside the features that the request itself brings."""
        arrays = wire_arrays(self.contract, [request])
        given = {field.name: arrays[f"candidate.{field.name}"] for field in self.contract.candidate}
        features, model = self.trained.features, self.trained.model
        candidates = features.candidate_inputs(
            arrays["candidate.item_id"], arrays["candidate_lengths"], given | raw
        )
        with torch.inference_mode():
            state = model.encode_profile(features.profile_inputs(histories_of(self.contract, arrays)))
            return model.score(state, candidates, mode=self.mode)


@pytest.fixture(scope="module")
def trained_folder(
    ranker_folder: Callable[[str], Path],
    synthetic_folder: Path,
    synthetic_dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A ranker with candidate features, as co-training would write it."""
    release = load_release(ranker_folder("decoder").with_name("decoder_release"))
    tasks = load_tasks(synthetic_folder / "schema.toml")
    config = RankerConfig("decoder", 4, 8, interaction=InteractionConfig(3, 20, (24, 12)), crossing_layers=1)
    data = row_features(synthetic_dataset, release, known_features(DECLARED, SEEN))
    torch.manual_seed(0)
    assembly = assemble_on(config, data, release, [task.name for task in tasks])
    with torch.no_grad():
        for parameter in assembly.model.parameters():
            parameter.mul_(2)
    trained = TrainedRanker(assembly.model, assembly.features, tasks, (math.log(KEPT), 0.0))
    folder = tmp_path_factory.mktemp("candidates") / "ranker"
    save_ranker(folder, trained, release.manifest, {})
    return folder


@pytest.fixture(scope="module", params=["vector", "crossing"])
def served(request: pytest.FixtureRequest, trained_folder: Path) -> Served:
    repository = trained_folder.with_name(f"repository-{request.param}")
    export_repository(ExportConfig(trained_folder, repository, mode=request.param))
    contract = (repository / "marquee" / "1" / "contract.json").read_text(encoding="utf-8")
    return Served(request.param, repository, load_ranker(trained_folder), Contract.from_json(contract))


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with launch(served.repository, threads=1) as server, Client(server.grpc_url, timeout_s=20) as client:
        yield client


@pytest.fixture
def request_made(make_request) -> RankRequest:
    return replace(make_request(num_candidates=NUM_CANDIDATES), candidate_features=GIVEN)


def test_a_request_is_scored_by_what_it_says_of_its_candidates(
    client: Client, served: Served, request_made: RankRequest
):
    assert [field.name for field in client.contract.candidate] == ["retrieval", "row"]
    answer = client.rank(request_made)
    assert difference(served.whole(request_made), torch.from_numpy(answer.logits.copy())) <= SERVED_TOLERANCE
    changed = {**GIVEN, "retrieval": [0.9, *GIVEN["retrieval"][1:]]}
    moved = np.abs(client.rank(replace(request_made, candidate_features=changed)).logits - answer.logits)
    assert moved[0].max() > 0.01
    assert moved[1:].max() < 1e-6, "it is the first candidate's feature alone"


def test_several_requests_of_a_call_keep_their_features(client: Client, request_made: RankRequest):
    others = {"retrieval": GIVEN["retrieval"][::-1], "row": [1] * NUM_CANDIDATES}
    requests = [request_made, replace(request_made, candidate_features=others)]
    for together, alone in zip(client.rank_many(requests), map(client.rank, requests), strict=True):
        np.testing.assert_allclose(together.logits, alone.logits, atol=1e-5)


def test_what_a_caller_leaves_out_has_no_value(client: Client, request_made: RankRequest):
    nothing = {name: [None] * NUM_CANDIDATES for name in GIVEN}
    left_out = client.rank(replace(request_made, candidate_features={}))
    assert (left_out.logits == client.rank(replace(request_made, candidate_features=nothing)).logits).all()
    assert (left_out.logits != client.rank(request_made).logits).any()


def test_scores_are_corrected_for_negatives_that_were_left_out(client: Client, request_made: RankRequest):
    answer = client.rank(request_made)
    expected = torch.sigmoid(torch.from_numpy(answer.logits + np.array([math.log(KEPT), 0.0], np.float32)))
    np.testing.assert_allclose(answer.scores, expected.numpy(), atol=1e-6)
    uncorrected = torch.sigmoid(torch.from_numpy(answer.logits.copy())).numpy()
    assert (uncorrected - answer.scores)[:, 0].max() > 0.05
    assert (np.diff(answer.of("watch")[np.argsort(answer.logits[:, 0])]) >= 0).all(), "the order stays"


def test_a_position_is_read_in_training_and_fixed_in_serving(
    client: Client, served: Served, request_made: RankRequest
):
    assert "candidate.position" not in {spec.name for spec in client.contract.inputs}
    with pytest.raises(ValueError, match="unknown field 'position'; known are retrieval, row"):
        client.rank(replace(request_made, candidate_features={**GIVEN, "position": [0] * NUM_CANDIDATES}))
    found = torch.from_numpy(client.rank(request_made).logits.copy())
    at_first = served.whole(request_made, position=np.zeros(NUM_CANDIDATES, dtype=np.int64))
    in_turn = served.whole(request_made, position=np.arange(NUM_CANDIDATES))
    assert difference(at_first, found) <= SERVED_TOLERANCE
    moved = (in_turn - found).abs().max(dim=1).values
    assert moved[0] <= SERVED_TOLERANCE * max(1.0, float(found.abs().max()))
    assert moved[1:].max() > 0.01, "training reads where a candidate was shown"


def test_the_samples_of_an_export_bring_the_features(served: Served):
    sample = (served.repository / "marquee" / "1" / "sample_request.json").read_text(encoding="utf-8")
    assert '"candidate_features"' in sample
    assert '"retrieval"' in sample
    assert '"position"' not in sample.partition('"candidate_features"')[2]
