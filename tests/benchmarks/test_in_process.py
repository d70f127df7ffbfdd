"""The whole graph and the cut one compute the same, and the whole one does so by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.ceiling import Machine, count_flops
from benchmarks.held_out_requests import HeldOutRequests
from benchmarks.in_process import EagerRanker, repeat_profile
from benchmarks.interleave import Variant, verify
from benchmarks.request_cost import split_cost, unsplit_cost
from benchmarks.subject import Subject
from foundation.item_tower import ItemVectors
from serving.parity import TOLERANCE, repeat_requests


def test_whole_and_cut_agree_on_every_request(ranker: EagerRanker, workload: HeldOutRequests) -> None:
    whole = Variant("whole", ranker.unsplit, TOLERANCE)
    others = [Variant("split", ranker.split, TOLERANCE), Variant("forward", ranker.reference, TOLERANCE)]
    timings = verify(whole, others, range(len(workload)))
    assert not timings.refused
    logits = ranker.split(0)
    assert logits.shape == (20, 2)
    assert len(np.unique(logits[:, 0])) > 10


def test_the_chunk_changes_nothing_but_speed(
    subject: Subject, workload: HeldOutRequests, ranker: EagerRanker
) -> None:
    at_once = EagerRanker(subject.loaded, workload, chunk=100)
    np.testing.assert_allclose(at_once.unsplit(1), ranker.unsplit(1), atol=1e-5)


def test_repeated_inputs_are_those_of_repeated_requests(ranker: EagerRanker) -> None:
    repeated = repeat_profile(ranker.features.profile_inputs(ranker.histories[2]), 3)
    sent_thrice = ranker.features.profile_inputs(repeat_requests(ranker.histories[2], np.zeros(3, dtype=int)))
    for one, other in zip(repeated, sent_thrice, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_whole_graph_runs_the_decoder_for_each_candidate(
    ranker: EagerRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences: list[int] = []
    encode_profile = ranker.model.encode_profile

    def counting(profile, item_vectors):
        sequences.append(len(profile.last_index))
        return encode_profile(profile, item_vectors)

    monkeypatch.setattr(ranker.model, "encode_profile", counting)
    ranker.unsplit(0)
    assert sequences == [7, 7, 6]
    sequences.clear()
    ranker.split(0)
    assert sequences == [1]


def test_a_ranker_that_went_wrong_is_refused(
    subject: Subject, workload: HeldOutRequests, ranker: EagerRanker
) -> None:
    wrong = EagerRanker(subject.loaded, workload)
    assert wrong.item_vectors is not None
    wrong.item_vectors = ItemVectors(*(each.flip(0) for each in wrong.item_vectors))
    timings = verify(
        Variant("whole", ranker.unsplit, TOLERANCE), [Variant("split", wrong.split, TOLERANCE)], [0, 1]
    )
    assert set(timings.refused) == {"split"}


def test_the_whole_graph_costs_a_profile_more_for_each_further_candidate(ranker: EagerRanker) -> None:
    whole, cut = unsplit_cost(ranker, 0), split_cost(ranker, 0)
    profile = ranker.inputs(0).profile
    encode = count_flops(lambda: ranker.model.encode_profile(profile, ranker.item_vectors))
    interaction = ranker.model.interaction
    project = 2 * (interaction.profile_projection.weight.numel() + interaction.profile_dots.weight.numel())
    assert (whole.gflops - cut.gflops) * 1e9 == pytest.approx(19 * (encode + project))
    assert whole.mbytes > cut.mbytes
    slow = Machine(matmul_gflops_per_s=1.0, memory_gbytes_per_s=1000.0)
    assert whole.floor_ms(slow) == pytest.approx(whole.gflops * 1e3)
