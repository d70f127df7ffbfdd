"""Marquee as it is served: both halves with their fused operators, exported, saved and loaded again.

Shapes: B requests, T packed tokens, C candidates over the batch, m crossed layers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.case_graph import Inputs, workload_of
from benchmarks.baselines.protocol import Arrays, Case
from benchmarks.workload import Request, Workload, join
from foundation.layout import layout
from ranker.features.inputs import CandidateInputs, ProfileInputs
from serving.candidate_arguments import candidate_arguments
from serving.kernels.extension import cpu_capability
from serving.programs import Program, Shapes, export_program, load_program, save_program, weights_of
from serving.served_halves import Form, served_halves
from serving.split import candidate_shapes, profile_shapes, split


class Fused:
    """See `benchmarks.baselines.variants.Variant`.

    Args:
        threads: that PyTorch computes with, kernels too; set by the worker.
        folder: where programs are written.
        form: as an export has it.
    """

    def __init__(self, threads: int, folder: Path, form: Form | None = None) -> None:
        assert torch.get_num_threads() == threads
        self._folder = folder
        self._form = form or Form()
        self._programs: dict[str, Programs] = {}

    def load(self, case: Case) -> FusedSession:
        """Both programs, exported once for a workload: their shapes are dynamic, weights don't depend on sizes."""
        workload = workload_of(case)
        if case.workload not in self._programs:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._programs[case.workload] = Programs(workload, folder, self._form)
        return FusedSession(case, workload, self._programs[case.workload])


class Programs:
    """Profile and candidate program of a workload's ranker.

    Args:
        workload: whose ranker is cut and fused.
        folder: where programs are written.
        form: of the halves.

    Attributes:
        settings: what is fused, and in which precision.
        reference: the same int8 by plain operators; None: all is float32.
    """

    def __init__(self, workload: Workload, folder: Path, form: Form) -> None:
        halves, kernels, self.reference = served_halves(split(workload.ranker), form)
        self.settings: dict[str, Any] = {
            "rows": form.rows,
            "linears": form.linears,
            "fused": sorted(kernels.fused),
            "not_fused": kernels.not_fused,
            "instructions": cpu_capability(),
        }
        profile, candidates = join(workload.four(ragged=True))
        self.profile = _reloaded(halves.profile, tuple(profile), profile_shapes(), folder / "profile.pt2")
        with torch.no_grad():
            arguments = candidate_arguments(self.profile(*profile), profile, candidates)
        shapes = candidate_shapes(workload.config.crossing_layers)
        self.candidate = _reloaded(halves.candidate, arguments, shapes, folder / "candidate.pt2")

    def rank(self, request: Request, state: tuple[Tensor, ...] | None = None) -> Tensor:
        """Logits `[C, N]`; from the profile's state if it is given."""
        if state is None:
            state = self.profile(*request.profile)
        return self.candidate(*candidate_arguments(state, *request))[0]


def _reloaded(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Shapes, path: Path) -> Program:
    """A module by way of the file that a server would load."""
    save_program(export_program(module, inputs, shapes), path)
    return load_program(path, weights_of(module))


class FusedSession:
    """See `benchmarks.baselines.protocol.Session`. What a run begins with lies as the client's arrays do: lengths.

    Where tokens lie in the padded batch is found in the run: peers need no such thing, so it counts.
    """

    def __init__(self, case: Case, workload: Workload, programs: Programs) -> None:
        self.settings = programs.settings
        self._programs, self._part = programs, case.part
        requests = workload.requests
        calls = [
            [requests[(number + later) % len(requests)] for later in range(case.requests)]
            for number in range(len(requests))
        ]
        joined = [[join(call)] if case.together else call for call in calls]
        self._calls = [[_arrays(*each.profile, *each.candidates) for each in call] for call in joined]
        self._lengths = [[each.profile.token_offsets.diff().numpy() for each in call] for call in joined]
        self._states: list[list[Inputs]] = []
        if case.part == "candidates":
            with torch.inference_mode():
                self._states = [
                    [_arrays(*programs.profile(*each.profile)) for each in call] for call in joined
                ]

    def tune(self) -> None:
        """There is nothing to choose."""

    @torch.inference_mode()
    def run(self, number: int) -> Arrays:
        """See `Session.run`."""
        at = number % len(self._calls)
        each = [self._run_one(at, place) for place in range(len(self._calls[at]))]
        if len(each) == 1:
            return [tensor.numpy() for tensor in each[0]]
        return [torch.cat(parts).numpy() for parts in zip(*each, strict=True)]

    def _run_one(self, at: int, place: int) -> tuple[Tensor, ...]:
        request = _request(self._calls[at][place])
        if self._part == "candidates":
            return (self._programs.rank(request, _tensors(self._states[at][place])),)
        where = layout(torch.from_numpy(self._lengths[at][place]))
        laid_out = request._replace(profile=request.profile._replace(**where._asdict()))
        if self._part == "profile":
            return self._programs.profile(*laid_out.profile)
        return (self._programs.rank(laid_out),)

    @torch.inference_mode()
    def expected(self, number: int) -> Arrays | None:
        """Of an int8 form, what its reference of plain operators gives; None: it is held to float32."""
        reference = self._programs.reference
        if reference is None:
            return None
        calls = [_request(arrays) for arrays in self._calls[number % len(self._calls)]]
        if self._part == "profile":
            return [tensor.numpy() for tensor in reference.profile(*join(calls).profile)]
        return [torch.cat([reference.rank(*call) for call in calls]).numpy()]


def _arrays(*tensors: Tensor) -> Inputs:
    return tuple(tensor.contiguous().numpy() for tensor in tensors)


def _tensors(arrays: Inputs) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, arrays))


def _request(arrays: Inputs) -> Request:
    tensors, num_of_profile = _tensors(arrays), len(ProfileInputs._fields)
    return Request(ProfileInputs(*tensors[:num_of_profile]), CandidateInputs(*tensors[num_of_profile:]))


def variant(threads: int, folder: Path) -> Fused:
    """See `benchmarks.baselines.variants`."""
    return Fused(threads, folder)
