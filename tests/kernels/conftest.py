"""Operands for `interaction_first_layer`, a float64 specification, and the paths this processor can take.

For Triton kernels, without a GPU: the interpreter, and the compiler's report.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from serving.kernels.extension import cpu_capability

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
MakeOperands = Callable[..., Operands]
Capability = Callable[[str], AbstractContextManager[None]]


@contextmanager
def _capability(name: str) -> Iterator[None]:
    before = os.environ.get("MARQUEE_CPU_CAPABILITY")
    os.environ["MARQUEE_CPU_CAPABILITY"] = name
    try:
        yield
    finally:
        del os.environ["MARQUEE_CPU_CAPABILITY"]
        if before is not None:
            os.environ["MARQUEE_CPU_CAPABILITY"] = before


@pytest.fixture(scope="session")
def capability() -> Capability:
    """`with capability("avx2"):` forces one CPU path."""
    return _capability


@pytest.fixture(scope="session")
def capabilities() -> list[str]:
    """Every path that this processor can run, `baseline` first; or the one that the whole run is to take."""
    if os.environ.get("MARQUEE_CPU_CAPABILITY"):
        return [cpu_capability()]
    order = ["baseline", "avx2", "avx512", "avx512_vnni", "amx"]
    return order[: order.index(cpu_capability()) + 1]


@pytest.fixture(scope="session")
def make_operands() -> MakeOperands:
    """`make_operands(lengths, H, E, K, seed=0, dtype=torch.int64)` -> x, e, p, q, w, offsets."""

    def make(
        lengths: list[int], H: int, E: int, K: int, seed: int = 0, dtype: torch.dtype = torch.int64
    ) -> Operands:
        random = torch.Generator().manual_seed(seed)
        C, B = sum(lengths), len(lengths)
        shapes = [(C, H), (C, E), (B, H), (B, K, E), (K, H)]
        x, e, p, q, w = (torch.randn(shape, generator=random) for shape in shapes)
        return x, e, p, q, w, torch.tensor([0, *np.cumsum(lengths, dtype=np.int64).tolist()], dtype=dtype)

    return make


def _expected(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    out = np.empty(x.shape, dtype=np.float64)
    x64, e64, p64, q64, w64 = (operand.numpy().astype(np.float64) for operand in (x, e, p, q, w))
    for r, (begin, end) in enumerate(pairwise(offsets.tolist())):
        for c in range(begin, end):
            out[c] = np.maximum(0, x64[c] + p64[r] + (q64[r] @ e64[c]) @ w64)
    return torch.from_numpy(out)


@pytest.fixture(scope="session")
def expected() -> Callable[..., Tensor]:
    """The op in float64 numpy, one candidate at a time."""
    return _expected


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """max|difference| / max(1, max|expected|); NaN if any value is."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        if expected.numel() == 0:
            return 0.0
        scale = max(1.0, float(expected.abs().max()))
        return float((actual.to(torch.float64) - expected).abs().max()) / scale

    return measure


@pytest.fixture(scope="session")
def error_of_terms() -> Callable[[Tensor, Tensor, Tensor], float]:
    """`error_of_terms(found, x, weight)`, of `x weightᵀ`: max |error| / Σ|x w|, each output's own; NaN if any is."""

    def measure(found: Tensor, x: Tensor, weight: Tensor) -> float:
        x64, weight64 = x.double(), weight.double()
        return float(((found - x64 @ weight64.T).abs() / (x64.abs() @ weight64.abs().T)).max())

    return measure


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all(), "this torch doesn't fill uninitialised memory"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def interpret() -> Callable[[str], None]:
    """`interpret("candidates")` runs `interpreted/candidates.py` under the interpreter of the kernel language.

    The interpreter is chosen when a kernel is first imported, so the tests get a process of their own.
    """
    pytest.importorskip("triton", reason="the kernel language is installed on development machines")

    def run(name: str) -> None:
        path = Path(__file__).parent / "interpreted" / f"{name}.py"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    return run


@pytest.fixture
def spilled_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`spilled_bytes(kernel, types, constants, architecture, options)`: compiled, as `ptxas -v` reports it."""
    triton = pytest.importorskip("triton", reason="the kernel language is installed on development machines")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_kernel(
        kernel: Any,
        types: dict[str, str],
        constants: dict[str, int],
        architecture: int,
        options: dict[str, int],
    ) -> int:
        names = kernel.arg_names
        pointers = {name: "*fp32" for name in names if name.endswith("_ptr")}
        signature = dict.fromkeys(names, "i32") | pointers | types | dict.fromkeys(constants, "constexpr")
        # Every allocation of torch is aligned, so its launcher specialises the pointers on that.
        aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if name.endswith("_ptr")}
        source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options=options)
        ptx = tmp_path / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        name = next(word for word in compiled.asm["ptx"].split() if word.startswith("sm_"))
        report = subprocess.run(
            [ptxas, "-v", f"--gpu-name={name}", ptx, "-o", tmp_path / "kernel.cubin"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
        found = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", report)
        assert len(found) == 3, report
        return sum(map(int, found))

    return compile_kernel
