"""Seeded workloads: the same tensors in every process, sizes as named, logits worth comparing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.workload import WORKLOADS, Workload, join
from ranker.arches.profile_tower import DecoderTower
from serving.parity import TOLERANCE, difference

SMALL = WORKLOADS["small"]


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(SMALL)


def test_named_workloads_are_those_of_the_comparison() -> None:
    named = {name: each for name, each in WORKLOADS.items() if not name.startswith("small")}
    sizes = {name: (each.tokens, each.candidates, each.crossing_layers) for name, each in named.items()}
    assert sizes == {"reference": (256, 500, 0), "long": (1_024, 1_000, 0), "crossing": (256, 500, 1)}
    assert {(each.width, each.num_items) for each in named.values()} == {(256, 10_000)}


def test_the_reference_ranker_has_the_sizes_that_it_says() -> None:
    ranker = Workload(replace(WORKLOADS["reference"], num_items=20)).ranker
    assert isinstance(ranker.profile_tower, DecoderTower)
    decoder = ranker.profile_tower.foundation.config.decoder
    assert (decoder.width, decoder.num_layers, decoder.num_heads, decoder.block) == (256, 4, 4, "plain")
    assert [layer.out_features for layer in ranker.interaction.mlp if hasattr(layer, "out_features")] == [256]
    assert ranker.interaction.candidate_projection.out_features == 512
    assert len(ranker.tasks) == 2


def test_equal_configurations_give_equal_tensors(workload: Workload) -> None:
    again, other = Workload(SMALL), Workload(replace(SMALL, seed=1))
    weights, same = workload.ranker.state_dict(), again.ranker.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    assert not torch.equal(
        weights["interaction.heads.weight"], other.ranker.state_dict()["interaction.heads.weight"]
    )
    for request, repeated, different in zip(workload.requests, again.requests, other.requests, strict=True):
        for one, two in zip(
            (*request.profile, *request.candidates), (*repeated[0], *repeated[1]), strict=True
        ):
            assert torch.equal(one, two)
        assert not torch.equal(request.profile.item_ids, different.profile.item_ids)


def test_weights_do_not_depend_on_the_sizes_of_requests(workload: Workload) -> None:
    longer = Workload(replace(SMALL, tokens=40, candidates=3)).ranker.state_dict()
    assert all(torch.equal(tensor, longer[name]) for name, tensor in workload.ranker.state_dict().items())


def test_requests_differ_and_their_logits_are_spread(workload: Workload) -> None:
    logits = torch.stack([workload.reference(request) for request in workload.requests])
    assert logits.shape == (8, 12, 2)
    assert 0.3 < logits.std() < 3
    assert logits.std(dim=1).min() > 0.1
    assert logits.mean(dim=1).std(dim=0).min() > 0.02


@pytest.mark.parametrize("crossing_layers", [0, 1])
@pytest.mark.parametrize("ragged", [False, True])
def test_four_requests_joined_score_as_alone(crossing_layers: int, ragged: bool) -> None:
    workload = Workload(replace(SMALL, crossing_layers=crossing_layers))
    requests = workload.four(ragged)
    joined = join(requests)
    assert joined.profile.last_index.diff().unique().numel() == (3 if ragged else 1)
    alone = torch.cat([workload.reference(request) for request in requests])
    with torch.no_grad():
        together = workload.halves.rank(*joined)
    assert difference(alone, together) <= TOLERANCE


def test_a_workload_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WorkloadConfig\.candidates is 0"):
        replace(SMALL, candidates=0)


def test_a_history_beyond_the_rankers_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WorkloadConfig\.tokens is 1025; it must be at most 1024"):
        replace(SMALL, tokens=1_025)
