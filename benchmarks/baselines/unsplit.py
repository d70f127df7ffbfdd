"""The training graph as one piece: what serving would cost without the cut."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.baselines.case_graph import workload_of
from benchmarks.baselines.protocol import Arrays, Case
from benchmarks.in_process import repeat_profile
from benchmarks.workload import Request, Workload

CHUNK = 50
"""Candidates that it takes at a time; all of them would need gigabytes."""


class Unsplit:
    """The training graph as one piece: every candidate brings its own copy of the history."""

    def load(self, case: Case) -> UnsplitSession:
        """Nothing is compiled.

        Raises:
            ValueError: a part of the request is asked for, or several requests: there are none here.
        """
        if case.part != "whole" or case.requests != 1:
            raise ValueError(f"{case.name}: the unsplit graph is of one whole request")
        return UnsplitSession(workload_of(case))


class UnsplitSession:
    """See `benchmarks.baselines.protocol.Session`."""

    def __init__(self, workload: Workload) -> None:
        self.settings: dict[str, object] = {"mode": "eager", "candidates_at_a_time": CHUNK}
        self._ranker, self._requests = workload.ranker, workload.requests
        with torch.no_grad():
            self._item_vectors = self._ranker.item_vectors()

    def tune(self) -> None:
        """There is nothing to choose."""

    @torch.inference_mode()
    def run(self, number: int) -> Arrays:
        """Logits, chunk by chunk."""
        request = self._requests[number % len(self._requests)]
        firsts = range(0, len(request.candidates.item_rows), CHUNK)
        return [torch.cat([self._chunk(request, first) for first in firsts]).numpy()]

    def _chunk(self, request: Request, first: int) -> torch.Tensor:
        last = min(first + CHUNK, len(request.candidates.item_rows))
        candidates = request.candidates.one_request_each(first, last)
        state = self._ranker.encode_profile(repeat_profile(request.profile, last - first), self._item_vectors)
        return self._ranker.score(state, candidates, self._item_vectors)

    def expected(self, number: int) -> None:
        """None: it is held to float32, chunks in one piece."""
        return


def variant(threads: int, folder: Path) -> Unsplit:
    """See `benchmarks.baselines.variants`."""
    return Unsplit()
