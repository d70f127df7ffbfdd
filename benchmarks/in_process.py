"""The ways to compute a request's logits in this process, from raw values on.

Shapes: C candidates of a request, T tokens of its history, S = T for one request, R candidates of a chunk, N tasks.

    unsplit   the training graph as one piece: every candidate brings its own copy of the history, and the decoder
              runs once per candidate, in batches
    split     the same modules cut at `ProfileState`: the decoder runs once per request
    exported  the two served programs, fused kernels included
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.held_out_requests import HeldOutRequests
from benchmarks.ranking_calls import rank_request
from ranker.artifact import LoadedRanker
from ranker.features.inputs import CandidateInputs, ProfileInputs
from ranker.model import RankerInputs
from serving.rank_request import wire_arrays
from serving.served_ranker import ServedRanker

Logits = NDArray[np.float32]


class ExportedRanker:
    """The served model's programs in this process, from wire arrays on.

    Args:
        folder: version folder of the served model, in a repository of `serving.export`.
        workload: the requests.
    """

    def __init__(self, folder: Path, workload: HeldOutRequests) -> None:
        self._ranker = ServedRanker(folder)
        self._arrays = [
            wire_arrays(self._ranker.contract, [rank_request(workload, number)])
            for number in range(len(workload))
        ]

    def exported(self, number: int) -> Logits:
        """Validation, features and both programs; `[C, N]`."""
        return self._ranker.rank(self._arrays[number]).numpy()


class EagerRanker:
    """A ranker that answers requests of a workload, whole or cut.

    Item vectors are computed once, for both ways alike: they depend on no request.

    Args:
        loaded: the ranker.
        workload: the requests.
        chunk: R, how many candidates the unsplit graph takes at a time; all of them would need gigabytes.
    """

    def __init__(self, loaded: LoadedRanker, workload: HeldOutRequests, chunk: int = 50) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be at least 1 candidate")
        self.model = loaded.model
        self.features = loaded.features
        self.chunk = chunk
        self.histories = [workload.histories(number) for number in range(len(workload))]
        self.candidates = [workload.candidates(number) for number in range(len(workload))]
        with torch.no_grad():
            self.item_vectors = self.model.item_vectors()

    def inputs(self, number: int) -> RankerInputs:
        """Model inputs of request `number`."""
        candidates = self.candidates[number]
        # As the client sends it: a workload is made of events, which say nothing more of candidates.
        raw = self.features.config.candidates.no_values(len(candidates))
        return RankerInputs(
            self.features.profile_inputs(self.histories[number]),
            self.features.candidate_inputs(candidates, np.array([len(candidates)]), raw),
        )

    @torch.no_grad()
    def reference(self, number: int) -> Logits:
        """`Ranker.forward`, which everything else is held to; `[C, N]`."""
        return self.model(self.inputs(number)).numpy()

    @torch.no_grad()
    def split(self, number: int) -> Logits:
        """The profile once, then its candidates; `[C, N]`."""
        profile, candidates, _ = self.inputs(number)
        state = self.model.encode_profile(profile, self.item_vectors)
        return self.model.score(state, candidates, self.item_vectors).numpy()

    @torch.no_grad()
    def unsplit(self, number: int) -> Logits:
        """The history repeated for each candidate; `[C, N]`.

        Features are built once and repeated as tensors, which spares this variant the work of looking the same
        history up again for every candidate.
        """
        profile, candidates, _ = self.inputs(number)
        num_candidates = len(candidates.item_rows)
        firsts = range(0, num_candidates, self.chunk)
        chunks = (candidates.one_request_each(at, min(at + self.chunk, num_candidates)) for at in firsts)
        return torch.cat([self._unsplit_chunk(profile, chunk) for chunk in chunks]).numpy()

    def _unsplit_chunk(self, profile: ProfileInputs, one_each: CandidateInputs) -> Tensor:
        repeated = repeat_profile(profile, len(one_each.item_rows))
        state = self.model.encode_profile(repeated, self.item_vectors)
        return self.model.score(state, one_each, self.item_vectors)


def repeat_profile(profile: ProfileInputs, times: int) -> ProfileInputs:
    """The inputs of one request as if it had been sent `times` times."""
    assert len(profile.last_index) == 1, "repeats a single request"
    num_tokens = len(profile.item_ids)
    first_token = torch.arange(times) * num_tokens
    return ProfileInputs(
        facet_ids=profile.facet_ids.repeat(times, 1),
        item_ids=profile.item_ids.repeat(times),
        dense_index=profile.dense_index + first_token[:, None],
        packed_index=(profile.packed_index + first_token[:, None]).flatten(),
        positions=profile.positions.repeat(times),
        last_index=profile.last_index + first_token,
        sparse=profile.sparse.repeat(times, 1),
        dense=profile.dense.repeat(times, 1),
    )
