"""The ceiling: what this machine can do, and what a request asks of it at the least.

Shapes: B requests, T packed tokens, S tokens of a request, C candidates, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_MATMUL_SIZE = 1024
_ROUNDS = 5
# Larger than any shared cache that is likely to be ours alone; a server's last-level cache can hold 64 MiB whole.
_BUFFER_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Machine:
    """Measured rates with the present number of threads."""

    matmul_gflops_per_s: float
    memory_gbytes_per_s: float

    def to_json(self) -> dict[str, float]:
        """Plain values for a report."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Work:
    """What one request costs at the least.

    Attributes:
        gflops: multiplications and additions of the matrix products and of attention.
        mbytes: weights and item rows read once, activations not counted.
    """

    gflops: float
    mbytes: float

    def floor_ms(self, machine: Machine) -> float:
        """No implementation on `machine` is faster: the slower of arithmetic and memory at full rate."""
        compute_ms = self.gflops / machine.matmul_gflops_per_s * 1e3
        return max(compute_ms, self.mbytes / machine.memory_gbytes_per_s)

    def to_json(self, machine: Machine) -> dict[str, float]:
        """Plain values for a report, with the floor on `machine`."""
        return {
            "gflops": round(self.gflops, 4),
            "mbytes": round(self.mbytes, 3),
            "floor_ms": round(self.floor_ms(machine), 3),
        }


def measure_machine() -> Machine:
    """Best of a few rounds: float32 matrix product of 1024 x 1024, and a copy of 512 MiB (read and written)."""
    a, b = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE), torch.randn(_MATMUL_SIZE, _MATMUL_SIZE)
    product = torch.empty(_MATMUL_SIZE, _MATMUL_SIZE)
    source = torch.ones(_BUFFER_BYTES // 4)
    target = torch.empty_like(source)
    matmul_s = _best(lambda: torch.mm(a, b, out=product))
    copy_s = _best(lambda: target.copy_(source))
    return Machine(2 * _MATMUL_SIZE**3 / matmul_s / 1e9, 2 * _BUFFER_BYTES / copy_s / 1e9)


def count_flops(compute: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products and attention that `compute` runs.

    Attention counts its full square, as the kernels' own conventions do, though a causal mask needs half.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    with torch.no_grad(), counter:
        compute()
    return counter.get_total_flops()


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Two products of [S, K] x [K, S] size per sequence and head; shapes are `[B, H, S, K]`."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def tensor_bytes(tensors: list[Tensor]) -> int:
    """Bytes of distinct tensors."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _best(run: Callable[[], Any]) -> float:
    run()
    fastest = float("inf")
    for _ in range(_ROUNDS):
        begin = perf_counter()
        run()
        fastest = min(fastest, perf_counter() - begin)
    return fastest
