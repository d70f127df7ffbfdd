"""The variants by name; a runtime is imported only by the process that is to run it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

from benchmarks.baselines.protocol import Case, Session

MODULES = {
    "eager": "eager",
    "aotinductor": "aot_inductor",
    "onnxruntime": "onnx_runtime",
    "openvino": "open_vino",
    "unsplit": "unsplit",
    "fused": "fused",
    "fused_int8": "fused_int8",
    "eager_int8": "eager_int8",
    "onnxruntime_int8": "onnx_runtime_int8",
    "openvino_int8": "open_vino_int8",
}
"""The module of this package whose `variant(threads, folder)` makes it.

AOTInductor has no int8 of its own: quantising for it takes torchao, a package that nothing else here needs.
"""
_PACKAGES = ("onnx", "onnxruntime", "onnxscript", "openvino")


class Variant(Protocol):
    """Loads cases."""

    def load(self, case: Case) -> Session:
        """Make a case ready to run."""
        ...


def make_variant(name: str, threads: int, folder: Path) -> Variant:
    """A variant, its runtime loaded.

    Args:
        name: in `MODULES`.
        threads: to compute with.
        folder: for what it writes.

    Raises:
        ValueError: there is no such variant.
        ModuleNotFoundError: its runtime isn't installed; it says how to.
    """
    if name not in MODULES:
        raise ValueError(f"variant is {name!r}; it must be one of {', '.join(MODULES)}")
    try:
        module = import_module(f"benchmarks.baselines.{MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise ModuleNotFoundError(
            f"{name} needs {error.name}, which isn't installed: .venv/bin/pip install -r requirements/peers.txt"
            " -c requirements/constraints.txt",
            name=error.name,
        ) from error
    return module.variant(threads, folder)
