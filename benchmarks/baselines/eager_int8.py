"""PyTorch with its own dynamically quantised linear layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.ao.quantization.qconfig import per_channel_dynamic_qconfig

from benchmarks.baselines.case_graph import CaseGraph
from benchmarks.baselines.eager import Eager
from benchmarks.baselines.peer import Choice, Compiled, Peer


class EagerInt8(Eager):
    """See `Eager`: weights per output, activations per tensor and request."""

    choices: Sequence[Choice] = tuple(
        {"mode": "eager", "activations": "dynamic", "engine": engine} for engine in ("x86", "onednn")
    )

    def compile(self, graph: CaseGraph, choice: Choice) -> Compiled:
        """The module with quantised layers."""
        torch.backends.quantized.engine = choice["engine"]  # packs weights; a packed layer keeps its own
        layers = {nn.Linear: per_channel_dynamic_qconfig}
        with warnings.catch_warnings():
            # Its successor is torchao, a package that nothing else here needs.
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            module = quantize_dynamic(copy.deepcopy(graph.module), layers, dtype=torch.qint8)
        return super().compile(CaseGraph(module, graph.inputs, graph.shapes), choice)


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(EagerInt8())
