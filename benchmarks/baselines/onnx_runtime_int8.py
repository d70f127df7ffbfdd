"""ONNX Runtime with int8 linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.baselines.case_graph import CaseGraph
from benchmarks.baselines.int8_model import quantised
from benchmarks.baselines.onnx_runtime import GRAPHS, OnnxRuntime, exported
from benchmarks.baselines.peer import Choice, Peer


class OnnxRuntimeInt8(OnnxRuntime):
    """See `OnnxRuntime`.

    Args:
        threads: that work on an operator.
        folder: for intermediate files.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        super().__init__(threads)
        self._folder = folder
        self.choices: Sequence[Choice] = [
            {**GRAPHS[0], "activations": activations, "spinning": spinning}
            for activations, spinning in product(("dynamic", "static"), (True, False))
        ]

    def model(self, graph: CaseGraph, choice: Choice) -> bytes:
        """The quantised model."""
        return quantised(exported(graph, choice), graph, choice["activations"], self._folder)


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(OnnxRuntimeInt8(threads, folder))
