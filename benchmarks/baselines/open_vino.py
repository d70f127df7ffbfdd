"""OpenVINO: tuned for latency, computing in float32, by the way of ONNX or straight from torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import openvino
import torch
from numpy.typing import NDArray

from benchmarks.baselines.case_graph import CaseGraph, Inputs
from benchmarks.baselines.onnx_runtime import exported
from benchmarks.baselines.peer import Choice, Compiled, Peer

FOR_OPEN_VINO = {"attention": "products and softmax", "opset": 20}
"""How the graph is written as ONNX."""


class OpenVino:
    """See `benchmarks.baselines.peer.Runtime`.

    Args:
        threads: that work on a request.
    """

    def __init__(self, threads: int) -> None:
        self._properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the processor has it
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self.choices: Sequence[Choice] = [
            {"shapes": shapes, "by_way_of": way}
            for shapes, way in product(("static", "dynamic"), ("torch.export", "onnx"))
        ]

    def model(self, graph: CaseGraph, choice: Choice) -> openvino.Model:
        """What is compiled."""
        return converted(graph, choice)

    def compile(self, graph: CaseGraph, choice: Choice) -> Compiled:
        """A compiled model and its one request of inference."""
        model = openvino.Core().compile_model(self.model(graph, choice), "CPU", self._properties)
        request = model.create_infer_request()

        def run(inputs: Inputs) -> Sequence[NDArray]:
            found = request.infer(list(inputs), share_inputs=True, share_outputs=True)
            return [found[number] for number in range(len(found))]

        return run


def converted(graph: CaseGraph, choice: Choice) -> openvino.Model:
    """The graph as OpenVINO's model."""
    if choice["by_way_of"] == "onnx":
        model = exported(graph, {"shapes": choice["shapes"], **FOR_OPEN_VINO})
        return openvino.Core().read_model(model)
    shapes = graph.shapes if choice["shapes"] == "dynamic" else None
    program = torch.export.export(graph.module, graph.example(), dynamic_shapes=shapes)
    return openvino.convert_model(program)


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(OpenVino(threads))
