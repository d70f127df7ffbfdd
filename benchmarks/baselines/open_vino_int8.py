"""OpenVINO with int8 linear layers, from a model that ONNX Runtime's quantiser wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openvino

from benchmarks.baselines.case_graph import CaseGraph
from benchmarks.baselines.int8_model import quantised
from benchmarks.baselines.onnx_runtime import exported
from benchmarks.baselines.open_vino import FOR_OPEN_VINO, OpenVino
from benchmarks.baselines.peer import Choice, Peer


class OpenVinoInt8(OpenVino):
    """See `OpenVino`.

    Args:
        threads: that work on a request.
        folder: for intermediate files.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        super().__init__(threads)
        self._folder = folder
        self.choices: Sequence[Choice] = [
            {"shapes": shapes, "activations": "static"} for shapes in ("static", "dynamic")
        ]

    def model(self, graph: CaseGraph, choice: Choice) -> openvino.Model:
        """The quantised model."""
        float32 = exported(graph, {"shapes": choice["shapes"], **FOR_OPEN_VINO})
        return openvino.Core().read_model(quantised(float32, graph, choice["activations"], self._folder))


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(OpenVinoInt8(threads, folder))
