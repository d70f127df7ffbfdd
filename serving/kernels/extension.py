"""The C++ extension that holds every operator's schema and CPU path."""

from __future__ import annotations

import importlib

import torch


def load_extension() -> None:
    """Register the operators `torch.ops.marquee.*`; does nothing the second time.

    Raises:
        ImportError: if the extension isn't built, or was built for another torch or Python.
    """
    try:
        importlib.import_module("serving.kernels._C")
    except ImportError as error:
        raise ImportError(
            f"the C++ kernels can't be loaded ({error}): build them with `make setup`, "
            "or `pip install -e . --no-deps --no-build-isolation`, with the Python and torch that run now"
        ) from error


def cpu_capability() -> str:
    """The path that CPU kernels take in this process: `baseline`, `avx2`, `avx512`, `avx512_vnni` or `amx`.

    `MARQUEE_CPU_CAPABILITY` overrides it, and is read at every call.

    Raises:
        ValueError: if the variable names no path, or one that this processor can't run.
    """
    load_extension()
    return torch.ops.marquee.cpu_capability()
