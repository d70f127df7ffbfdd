"""AMX's products by themselves, in guarded memory; inside the operators: test_amx_operators.py.

The sanitizers see no load of a tile, which is assembly. So the products' own code is compiled here too
(`products.cpp`), and every operand ends at a page that can't be touched: a load or a store past it ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from serving.kernels.extension import cpu_capability
from serving.kernels.linear.int8 import pack_int8
from serving.kernels.linear.panels import PANEL, pack

pytestmark = pytest.mark.skipif(cpu_capability() != "amx", reason="the processor, or this run, has no AMX")

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "serving/kernels"
NONE, VNNI, AMX = 0, 1, 2
"""Extra in capability.h."""
PAGE = mmap.PAGESIZE

# What is left out of a product is 2^-21 of it at most, and rounding comes on top.
OF_ITS_TERMS = 5e-7
OF_THE_LARGEST = 1e-6

ROWS = [1, 2, 15, 16, 17, 31, 32, 33, 47, 49, 96, 264]
INPUTS = [1, 2, 3, 31, 32, 33, 62, 64, 65, 127, 128, 129, 130, 159, 160, 256, 257, 300]
OUTPUTS = [1, 15, 16, 17, 32, 33, 48, 80]

few = settings(max_examples=25, deadline=None, derandomize=True)
Multiply = Callable[..., Tensor]


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not here")
    library = tmp_path_factory.mktemp("amx") / "products.so"
    flags = ["-O2", "-std=c++20", "-fPIC", "-shared", "-ffp-contract=fast", "-Wno-psabi", "-I", KERNELS]
    # Without what the sanitizers' run preloads.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(["g++", *flags, HERE / "products.cpp", "-o", library], check=True, env=environment)
    loaded = ctypes.CDLL(str(library))
    loaded.num_prepared_bytes.restype = ctypes.c_int64
    return loaded


class _Guarded:
    """`num_bytes` that end where a page begins that nobody may touch; filled with 0xff, NaN in either float."""

    def __init__(self, num_bytes: int) -> None:
        pages = -(-num_bytes // PAGE)
        self._map = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + pages * PAGE), PAGE, 0) == 0
        self._end, self.address = start + pages * PAGE, start + pages * PAGE - num_bytes
        ctypes.memset(self.address, 0xFF, num_bytes)

    @classmethod
    def of(cls, tensor: Tensor) -> _Guarded:
        tensor = tensor.contiguous()
        guarded = cls(tensor.nbytes)
        ctypes.memmove(guarded.address, tensor.data_ptr(), tensor.nbytes)
        return guarded

    def tensor(self, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        values = (ctypes.c_float * size).from_address(self.address)
        return (
            torch.frombuffer(values, dtype=torch.float32, count=size).clone().view(shape)
            if size
            else torch.empty(shape)
        )


@pytest.fixture(scope="module")
def multiply(products: ctypes.CDLL) -> Multiply:
    """`multiply(x, weight, extra=AMX, panels=None, int8=False)`: `x weightᵀ`; NaN in panels that aren't asked for."""

    def run(
        x: Tensor, weight: Tensor, extra: int = AMX, panels: tuple[int, int] | None = None, int8: bool = False
    ) -> Tensor:
        (R, K), N = x.shape, weight.shape[0]
        packed, scales = pack_int8(weight) if int8 else (pack(weight), None)
        width = packed.shape[0] * PANEL
        operands = [_Guarded.of(x), _Guarded.of(packed), _Guarded(4 * R * width)]
        prepared, row_scales = _Guarded(products.num_prepared_bytes(R, K)), _Guarded(4 * R)
        of_columns = None if scales is None else _Guarded.of(scales)
        first, last = panels or (0, packed.shape[0])
        address, count = ctypes.c_void_p, ctypes.c_int64
        products.multiply_rows(
            address(operands[0].address), count(x.stride(0)), count(R), count(K), address(operands[1].address),
            address(of_columns.address if of_columns else None), count(N), count(first), count(last), extra,
            address(prepared.address), address(row_scales.address), address(operands[2].address),
        )  # fmt: skip
        return operands[2].tensor(R, width)[:, :N]

    return run


def _normal(R: int, K: int, N: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(R, K, generator=random), torch.randn(N, K, generator=random)


@few
@given(
    R=st.sampled_from(ROWS), K=st.sampled_from(INPUTS), N=st.sampled_from(OUTPUTS), seed=st.integers(0, 2**31)
)
@example(R=288, K=128, N=33, seed=0)  # kMostRows of split_impl.h
@example(R=289, K=130, N=48, seed=0)
@example(R=600, K=33, N=17, seed=0)
@example(R=33, K=300, N=80, seed=0)
def test_float32_products_of_any_size(
    multiply: Multiply, error_of_terms: Any, R: int, K: int, N: int, seed: int
) -> None:
    x, weight = _normal(R, K, N, seed)
    found = multiply(x, weight)
    assert not torch.equal(found, multiply(x, weight, NONE)) or R * K * N < 100, "AMX has rounding of its own"
    assert error_of_terms(found, x, weight) <= OF_ITS_TERMS


@few
@given(
    R=st.sampled_from(ROWS),
    K=st.sampled_from([*INPUTS, 192, 320]),
    N=st.sampled_from(OUTPUTS),
    seed=st.integers(0, 99),
)
@example(R=33, K=64, N=48, seed=0)
@example(R=16, K=128, N=16, seed=0)
def test_int8_products_are_those_of_vnni(multiply: Multiply, R: int, K: int, N: int, seed: int) -> None:
    """To the bit, whether K is a multiple of 64, which AMX takes, or not."""
    x, weight = _normal(R, K, N, seed)
    found = multiply(x, weight, AMX, int8=True)
    assert torch.equal(found, multiply(x, weight, VNNI, int8=True))
    assert torch.equal(found, multiply(x, weight, NONE, int8=True))


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("K", [64, 161])
def test_an_output_depends_on_its_row_and_its_weights_alone(multiply: Multiply, K: int, int8: bool) -> None:
    """To the bit: alone, in a few rows and in many; panels alone and in pairs. A bad row is NaN, others as ever."""
    R, N = 321, 80
    x, weight = _normal(R, K, N)
    wanted = multiply(x, weight, int8=int8)
    for first, last in ((0, 1), (0, 16), (3, 20), (5, 37), (16, 33), (288, 321), (1, 290)):
        assert torch.equal(multiply(x[first:last], weight, int8=int8), wanted[first:last]), (first, last)
    for first, last in ((0, 1), (1, 2), (1, 4), (2, 5), (4, 5)):
        found = multiply(x, weight, panels=(first, last), int8=int8)
        own = slice(first * PANEL, last * PANEL)
        assert torch.equal(found[:, own], wanted[:, own]), (first, last)
        assert found[:, : own.start].isnan().all() and found[:, own.stop :].isnan().all(), (
            "others are written"
        )
    assert multiply(x, weight, panels=(5, 5), int8=int8).isnan().all()
    bad = {0: torch.nan, 15: torch.inf, 16: -torch.inf, 33: torch.nan, 290: torch.inf}
    for at, (row, value) in enumerate(bad.items()):
        x[row, (at * 40 + 1) % K] = value
    found = multiply(x, weight, int8=int8)
    is_bad = torch.zeros(R, dtype=torch.bool)
    is_bad[list(bad)] = True
    assert found[is_bad].isnan().all()
    assert torch.equal(found[~is_bad], wanted[~is_bad])


def test_weights_that_are_not_finite_spoil_their_output_alone(multiply: Multiply) -> None:
    x, weight = _normal(20, 130, 40)
    wanted = multiply(x, weight)
    weight[3, 129], weight[20, 0] = torch.nan, -torch.inf
    found = multiply(x, weight)
    is_bad = torch.tensor([n in (3, 20) for n in range(40)])
    assert found[:, is_bad].isnan().all()
    assert torch.equal(found[:, ~is_bad], wanted[:, ~is_bad])


def test_float32_is_as_exact_as_by_its_own_instructions(multiply: Multiply) -> None:
    """Half of the error of multiply-adds one after the other was measured."""
    for seed in range(4):
        x, weight = _normal(288, 512, 96, seed)
        wanted = x.double() @ weight.double().T
        of_amx, of_avx512 = (
            float((multiply(x, weight, extra) - wanted).abs().max() / wanted.abs().max())
            for extra in (AMX, NONE)
        )
        assert of_amx <= of_avx512 <= OF_THE_LARGEST


def test_whole_numbers_are_exact(multiply: Multiply) -> None:
    """Up to 12 bits, two parts each, whose products and sums all fit 24 bits: what is left out is nothing."""
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-2047, 2048, (R, 4), generator=random).float() for R in (50, 40))
    assert torch.equal(multiply(x, weight).double(), x.double() @ weight.double().T)
