"""One co-trained ranker behind Triton Server in either mode: right values over gRPC, and two different models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ranker.artifact import LoadedRanker, load_ranker
from ranker.state import Mode
from serving.client import Client
from serving.parity import Rank, difference, unsplit_rank
from serving.probe import SERVED_TOLERANCE
from serving.rank_request import wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.server import launch

MODES: tuple[Mode, ...] = ("vector", "crossing")


@pytest.fixture(scope="module")
def crossed(ranker_folder: Callable[[str], Path]) -> LoadedRanker:
    return load_ranker(ranker_folder("crossing"))


@pytest.fixture(scope="module", params=MODES)
def served(
    request, crossed: LoadedRanker, ranker_folder, tmp_path_factory
) -> Iterator[tuple[Mode, Client, Rank, Rank]]:
    """A client of the ranker served in one mode, and the unsplit ranker in this mode and in the other."""
    repository = tmp_path_factory.mktemp("modes") / request.param
    export_repository(ExportConfig(ranker_folder("crossing"), repository, 200, mode=request.param))
    with launch(repository, threads=1) as server, Client(server.grpc_url, timeout_s=20) as client:
        features, contract = crossed.features, client.contract
        own, other = (
            unsplit_rank(crossed.model, features, contract, mode)
            for mode in sorted(MODES, key=request.param.__ne__)
        )
        yield request.param, client, own, other


@pytest.mark.parametrize(
    ("num_events", "num_candidates"), [(0, 1), (1, 1), (5, 2), (12, 150), (13, 40), (24, 7)]
)
def test_served_logits_are_those_of_the_unsplit_ranker(
    served, make_request, num_events, num_candidates
) -> None:
    _, client, own, other = served
    request = make_request(num_events, num_candidates)
    logits = torch.from_numpy(client.rank(request).logits.copy())
    arrays = wire_arrays(client.contract, [request])
    assert difference(own(arrays), logits) <= SERVED_TOLERANCE
    assert difference(other(arrays), logits) > 100 * SERVED_TOLERANCE, "the modes are different models"


def test_requests_in_one_call_get_their_own_answers(served, make_request) -> None:
    _, client, own, _ = served
    requests = [make_request(4, 6), make_request(0, 2), make_request(20, 9, profile=2)]
    for request, answer in zip(requests, client.rank_many(requests), strict=True):
        expected = own(wire_arrays(client.contract, [request]))
        assert difference(expected, torch.from_numpy(answer.logits.copy())) <= SERVED_TOLERANCE


def test_a_score_does_not_change_with_the_other_candidates(served, make_request) -> None:
    _, client, _, _ = served
    request = make_request(9, 20)
    together = client.rank(request).logits
    few = replace(request, candidates=list(request.candidates[7:9])[::-1])
    np.testing.assert_allclose(client.rank(few).logits[::-1], together[7:9], rtol=1e-5, atol=1e-5)


def test_the_newest_event_counts(served, make_request) -> None:
    _, client, _, _ = served
    before, after = client.rank(make_request(9, 20)).logits, client.rank(make_request(10, 20)).logits
    assert np.abs(before - after).min() > 1e-4
