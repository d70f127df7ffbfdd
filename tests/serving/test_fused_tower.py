"""The profile's tower of a ranker whose tokens tell no item's age: what only such a one runs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workload import WORKLOADS, Workload, join
from foundation.layout import layout
from serving.fuse import fuse
from serving.parity import TOLERANCE, difference
from serving.split import split


@pytest.mark.parametrize("name", ["small", "small_crossing"])
@torch.no_grad()
def test_items_join_the_facets_and_the_state_is_the_split_ones(name: str) -> None:
    workload = Workload(WORKLOADS[name])
    fused = split(workload.ranker)
    kernels = fuse(fused)
    assert kernels.fused["profile.tower.foundation.facet_embedding"] == "marquee::embed_tokens"
    assert kernels.fused["profile.tower.sparse"] == "marquee::profile_vector"
    profile, candidates = join(workload.four(ragged=True))
    for found, expected in zip(fused.profile(*profile), workload.halves.profile(*profile), strict=True):
        assert difference(found, expected) <= TOLERANCE
    logits = fused.rank(profile, candidates)
    assert difference(logits, workload.halves.rank(profile, candidates)) <= TOLERANCE


@torch.no_grad()
def test_a_request_without_tokens_is_an_error_and_no_score() -> None:
    workload = Workload(WORKLOADS["small"])
    fused = split(workload.ranker)
    fuse(fused)
    profile, _ = join(workload.requests[:2])
    num_tokens = profile.item_ids.shape[0]
    wrong = profile._replace(**layout(torch.tensor([0, num_tokens]))._asdict())
    with pytest.raises(ValueError, match=r"last_index\[1\] is \d+; request 1 has no token"):
        fused.profile(*wrong)
