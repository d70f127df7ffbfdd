"""The best rate at which this machine multiplies the workload's own shapes, by whichever library does it best.

    mm        torch.mm, weights as they are
    mkl       MKL with weights that it packed ahead
    onednn    oneDNN with weights that it packed ahead
    panels    marquee::linear, this project's own packed weights; like the others in float32's own instructions,
              also where the fused operators have AMX compute float32 products faster

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.least_products import Product
from benchmarks.percentiles import percentile
from serving.kernels.linear.ops import linear
from serving.kernels.linear.panels import pack

# Fewer rows are bound by reading the weights: their rate says nothing of arithmetic.
_FEWEST_ROWS = 16
_SECONDS_A_SHAPE = 0.01
_FEWEST_RUNS = 3

Multiply = Callable[[Tensor], Tensor]


class Rate(NamedTuple):
    """What was reached, and where."""

    gflops_per_s: float
    """Of the median of a round's runs: what was held for 10 ms, as latencies are compared by their medians."""
    shape: tuple[int, int, int]
    """M, K, N."""
    library: str
    luckiest_gflops_per_s: float
    """Of the round's fastest run."""


class MatrixRates:
    """Measures again and again: each round is short, so that it fits between other variants' blocks.

    Args:
        products: whose shapes, those with weights and at least 16 rows.
    """

    def __init__(self, products: Iterable[Product]) -> None:
        shapes = {
            (each.rows, each.inner, each.outer)
            for each in products
            if each.weights and each.rows >= _FEWEST_ROWS
        }
        self._subjects = {
            shape: (torch.randn(shape[:2]), _libraries(torch.randn(shape[2], shape[1]), shape[0]))
            for shape in sorted(shapes)
        }

    @torch.no_grad()
    def measure(self) -> list[Rate]:
        """One round: each library on each shape, in a fixed order."""
        rates = []
        for shape, (x, libraries) in self._subjects.items():
            for library, multiply in libraries.items():
                gflop, runs_s = 2 * shape[0] * shape[1] * shape[2] / 1e9, _runs_s(multiply, x)
                rates.append(Rate(gflop / percentile(runs_s, 50), shape, library, gflop / min(runs_s)))
        return rates


def _libraries(weight: Tensor, rows: int) -> Mapping[str, Multiply]:
    """Ways to compute `x Wᵀ` of a weight `[N, K]`."""
    transposed, packed = weight.t(), pack(weight)
    ways: dict[str, Multiply] = {
        "mm": lambda x: torch.mm(x, transposed),
        "panels": lambda x: linear(x, packed, None, None, len(weight)),
    }
    if torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways["onednn"] = lambda x: torch.ops.mkldnn._linear_pointwise(x, onednn, None, "none", [], "")
        if torch.backends.mkl.is_available():
            mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
            ways["mkl"] = lambda x: torch.ops.mkl._mkl_linear(x, mkl, weight, None, rows)
    return ways


def _runs_s(multiply: Multiply, x: Tensor) -> list[float]:
    multiply(x)
    runs, begin = [], perf_counter()
    while len(runs) < _FEWEST_RUNS or perf_counter() - begin < _SECONDS_A_SHAPE:
        run_begin = perf_counter()
        multiply(x)
        runs.append(perf_counter() - run_begin)
    return runs
