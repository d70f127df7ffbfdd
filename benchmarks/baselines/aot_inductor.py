"""AOTInductor: torch.export, then TorchInductor's C++ ahead of time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from numpy.typing import NDArray

from benchmarks.baselines.case_graph import CaseGraph, Inputs
from benchmarks.baselines.peer import Choice, Compiled, Peer


class AotInductor:
    """See `benchmarks.baselines.peer.Runtime`.

    Args:
        threads: that PyTorch computes with; set by the worker.
        folder: where packages are written.
    """

    def __init__(self, threads: int, folder: Path) -> None:
        assert torch.get_num_threads() == threads
        self._folder = folder
        self.choices: Sequence[Choice] = [
            {"shapes": shapes, "freezing": freezing, "max_autotune": autotune}
            for shapes, freezing, autotune in (
                ("static", True, False),
                ("static", True, True),
                ("static", False, False),
                ("dynamic", True, False),
            )
        ]

    def compile(self, graph: CaseGraph, choice: Choice) -> Compiled:
        """A loaded package."""
        shapes = graph.shapes if choice["shapes"] == "dynamic" else None
        options: dict[str, Any] = {
            "freezing": choice["freezing"],
            "max_autotune": choice["max_autotune"],
            # C++ templates of its own beside oneDNN and MKL, of which it takes the fastest.
            "max_autotune_gemm_backends": "CPP,ATEN",
        }
        path = Path(tempfile.mkdtemp(dir=self._folder)) / "graph.pt2"
        with torch.no_grad():
            program = torch.export.export(graph.module, graph.example(), dynamic_shapes=shapes)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )
        package = torch._inductor.aoti_load_package(str(path))

        def run(inputs: Inputs) -> Sequence[NDArray]:
            with torch.inference_mode():
                found = package(*map(torch.from_numpy, inputs))
            return [each.numpy() for each in (found if isinstance(found, tuple | list) else (found,))]

        return run


def variant(threads: int, folder: Path) -> Peer:
    """See `benchmarks.baselines.variants`."""
    return Peer(AotInductor(threads, folder))
