"""PyTorch as it is: the peers' graph, one operator after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray

from benchmarks.baselines.case_graph import CaseGraph, Inputs
from benchmarks.baselines.peer import Choice, Compiled, Peer


class Eager:
    """See `benchmarks.baselines.peer.Runtime`: the graph is called as it is."""

    choices: Sequence[Choice] = ({"mode": "eager"},)

    def compile(self, graph: CaseGraph, choice: Choice) -> Compiled:
        """The module itself."""

        @torch.inference_mode()
        def run(inputs: Inputs) -> Sequence[NDArray]:
            found = graph.module(*map(torch.from_numpy, inputs))
            return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

        return run


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(Eager())
