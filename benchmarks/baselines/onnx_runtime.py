"""ONNX Runtime: `torch.onnx.export` by way of torch.export, all graph optimisations, inputs bound in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.baselines.case_graph import CaseGraph, Inputs
from benchmarks.baselines.onnx_attention import with_own_attention
from benchmarks.baselines.peer import Choice, Compiled, Peer

GRAPHS: Sequence[Mapping[str, Any]] = (
    {"shapes": "static", "attention": "GroupQueryAttention", "opset": 20},
    {"shapes": "static", "attention": "products and softmax", "opset": 20},
    {"shapes": "static", "attention": "Attention", "opset": 23},
    {"shapes": "dynamic", "attention": "products and softmax", "opset": 20},
)
"""Opset 20 is the first with a GELU of its own; 23 the first with attention as one operator."""


class OnnxRuntime:
    """See `benchmarks.baselines.peer.Runtime`.

    Args:
        threads: that work on an operator.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.choices: Sequence[Choice] = [
            {**graph, "spinning": spinning} for graph, spinning in product(GRAPHS, (True, False))
        ]

    def model(self, graph: CaseGraph, choice: Choice) -> bytes:
        """What a session is made of."""
        return exported(graph, choice)

    def compile(self, graph: CaseGraph, choice: Choice) -> Compiled:
        """A session of the exported graph."""
        session = self._session(self.model(graph, choice), choice)
        names = [each.name for each in session.get_inputs()]

        def run(inputs: Inputs) -> Sequence[NDArray]:
            found = session.run(None, dict(zip(names, inputs, strict=True)))
            return [each for each in found if isinstance(each, np.ndarray)]

        return run

    def _session(self, model: bytes, choice: Choice) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if choice["spinning"] else "0"
        )
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def exported(graph: CaseGraph, choice: Choice) -> bytes:
    """The graph as a serialised ONNX model, its shapes as they are or dynamic."""
    own = choice["attention"] == "GroupQueryAttention"
    program = torch.onnx.export(
        with_own_attention(graph.module) if own else graph.module,
        graph.example(),
        dynamo=True,
        opset_version=choice["opset"],
        dynamic_shapes=graph.shapes if choice["shapes"] == "dynamic" else None,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(OnnxRuntime(threads))
