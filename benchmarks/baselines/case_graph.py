"""What a case asks of a peer: one module over the tensors of one request, and these tensors as arrays.

Shapes: T tokens, C candidates, m crossed layers, H heads, K head width, N tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from benchmarks.baselines.candidate_graphs import FORMS, OneRequestCandidates
from benchmarks.baselines.profile_graph import OneRequestProfile
from benchmarks.baselines.protocol import Case
from benchmarks.workload import WORKLOADS, Request, Workload
from serving.programs import Shapes

Inputs = tuple[NDArray, ...]
MOST_TOKENS = 4_096
"""Positions that the graphs know; with static shapes the rotations beyond the request's are cut off at export."""


class WholeRequest(nn.Module):
    """Both halves as one graph: one call of the runtime, and threads that need not be woken twice.

    Inputs are those of the profile's graph, then the candidates' item rows, id columns and numbers.
    """

    def __init__(self, profile: OneRequestProfile, candidates: OneRequestCandidates) -> None:
        super().__init__()
        self.profile = profile
        self.candidates = candidates

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits `[C, N]`."""
        vector, *key_values = self.profile(*inputs[:4])
        return self.candidates(vector, *inputs[4:], *key_values)


@dataclass(frozen=True)
class CaseGraph:
    """A module, and what it is called with.

    Attributes:
        module: in evaluation mode.
        inputs: arrays of the request with the given number, modulo as many as the workload has.
        shapes: dynamic dimensions of each argument of `module.forward`; of all that `*arguments` takes, a tuple.
    """

    module: nn.Module
    inputs: Callable[[int], Inputs]
    shapes: tuple[Any, ...]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the first request."""
        return tuple(map(torch.from_numpy, self.inputs(0)))


@cache
def workload_of(case: Case) -> Workload:
    """The workload of a case, built once in a process."""
    config = WORKLOADS[case.workload]
    sizes = {"tokens": case.tokens, "candidates": case.candidates}
    given = {name: size for name, size in sizes.items() if size is not None}
    return _workload(replace(config, **given))


_workload = cache(Workload)


def case_graph(case: Case) -> CaseGraph:
    """The best graph that we know how to give a peer.

    Raises:
        ValueError: several requests are to be scored together: the graph is of one.
    """
    if case.requests > 1 and case.together:
        raise ValueError(f"requests is {case.requests}; a peer's graph is of one request, see together")
    workload = workload_of(case)
    tokens, candidates = Dim("T", min=2, max=MOST_TOKENS), Dim("C", min=2)
    of_profile: Shapes = ({0: tokens}, {0: tokens}, {}, {})
    of_candidates: Shapes = ({0: candidates}, {0: candidates}, {0: candidates})
    with torch.no_grad():
        profile = OneRequestProfile(workload.halves.profile, MOST_TOKENS).eval()
        if case.part == "profile":
            return CaseGraph(profile, _arrays(workload, profile_tensors), of_profile)
        half = FORMS[case.form](workload.ranker, workload.halves.candidate).eval()
    if case.part == "whole":
        whole = WholeRequest(profile, half).eval()
        inputs = _arrays(workload, lambda request: (*profile_tensors(request), *candidate_tensors(request)))
        return CaseGraph(whole, inputs, ((*of_profile, *of_candidates),))

    def with_state(request: Request) -> tuple[Tensor, ...]:
        vector, *key_values = profile(*profile_tensors(request))
        return (vector, *candidate_tensors(request), *key_values)

    of_state = ({0: tokens},) * (2 * workload.config.crossing_layers)
    shapes = ({}, *of_candidates, of_state) if of_state else ({}, *of_candidates)
    return CaseGraph(half, _arrays(workload, with_state), shapes)


def profile_tensors(request: Request) -> tuple[Tensor, ...]:
    """What `OneRequestProfile` reads."""
    profile = request.profile
    return profile.facet_ids, profile.item_ids, profile.sparse, profile.dense


def candidate_tensors(request: Request) -> tuple[Tensor, ...]:
    """What `OneRequestCandidates` reads between the vector and the keys and values."""
    candidates = request.candidates
    return candidates.item_rows, candidates.sparse, candidates.dense


def _arrays(workload: Workload, tensors: Callable[[Request], tuple[Tensor, ...]]) -> Callable[[int], Inputs]:
    """Inputs by number, each request's made at once: nothing but the variant's own work is timed."""
    with torch.no_grad():
        made = [
            tuple(each.contiguous().numpy() for each in tensors(request)) for request in workload.requests
        ]
    return lambda number: made[number % len(made)]
