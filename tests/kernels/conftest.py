"""Operands for `interaction_first_layer`, a float64 specification, and the paths this processor can take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise

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
    order = ["baseline", "avx2", "avx512", "avx512_vnni"]
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


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all(), "this torch doesn't fill uninitialised memory"
    yield
    torch.use_deterministic_algorithms(False)
