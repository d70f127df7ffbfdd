"""`marquee::linear` with int8 weights, on every path that the processor has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serving.kernels.linear.int8 import ROW_MAX, WEIGHT_MAX, pack_int8, quantised_linear, unpack_int8
from serving.kernels.linear.ops import linear

SIZES = [(1, 1, 1), (5, 7, 3), (13, 30, 17), (64, 256, 256), (97, 130, 33), (0, 8, 8), (7, 1024, 70)]


def _random(R: int, K: int, N: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(R + K + N)
    return torch.randn(R, K, generator=random), torch.randn(N, K, generator=random)


@pytest.mark.parametrize(("R", "K", "N"), SIZES)
def test_every_path_gives_the_reference_to_the_bit(
    R: int, K: int, N: int, capability: Any, capabilities: list[str], nan_filled_memory: None
) -> None:
    x, weight = _random(R, K, N)
    packed, scales = pack_int8(weight)
    expected = quantised_linear(x, packed, scales, None, N)
    for name in capabilities:
        with capability(name):
            assert torch.equal(linear(x, packed, scales, None, N), expected), name


@pytest.mark.parametrize(("R", "K", "N"), SIZES)
def test_it_is_near_the_float32_layer(R: int, K: int, N: int) -> None:
    """Rounding is at most half a step of each side: per product 1/2 x_max w_max (1/127 + 1/63) and a little."""
    x, weight = _random(R, K, N)
    bias = torch.linspace(-1, 1, N)
    y = linear(x, *pack_int8(weight), bias, N)
    bound = K * (0.5 / ROW_MAX + 0.6 / WEIGHT_MAX) * x.abs().amax(1)[:, None] * weight.abs().amax(1)
    assert bool(((y - (x @ weight.T + bias)).abs() <= bound + 1e-6).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_do_not_saturate(sign: float, capability: Any, capabilities: list[str]) -> None:
    """All inputs 127 (stored as 255) by all weights 63: each pair of products is 32,130, below 2^15."""
    K, N = 1024, 20
    x, weight = torch.full((3, K), float(ROW_MAX)), torch.full((N, K), sign * WEIGHT_MAX)
    packed, scales = pack_int8(weight)
    assert int(packed.abs().max()) == WEIGHT_MAX
    for name in capabilities:
        with capability(name):
            assert linear(x, packed, scales, None, N).unique().tolist() == [sign * K * ROW_MAX * WEIGHT_MAX]
            assert linear(-x, packed, scales, None, N).unique().tolist() == [-sign * K * ROW_MAX * WEIGHT_MAX]


def test_a_row_does_not_depend_on_its_neighbours(capability: Any, capabilities: list[str]) -> None:
    x, weight = _random(40, 50, 40)
    x[7] *= 1e6
    x[9] = torch.nan
    packed, scales = pack_int8(weight)
    for name in capabilities:
        with capability(name):
            together = linear(x, packed, scales, None, 40)
            alone = torch.cat([linear(row[None], packed, scales, None, 40) for row in x])
            assert torch.equal(together.nan_to_num(7), alone.nan_to_num(7)), name


@pytest.mark.parametrize("K", [3, 64, 65])
def test_rows_of_zeros_and_of_values_that_are_not_finite(
    K: int, capability: Any, capabilities: list[str]
) -> None:
    """Zeros, and what is next to nothing, give the bias; a NaN or an infinity anywhere gives NaN throughout."""
    x, weight = torch.ones(5, K), torch.ones(4, K)
    x[0], x[1], x[2, -1], x[3, 0] = 0.0, 1e-38, torch.nan, -torch.inf
    bias = torch.arange(4.0)
    for name in capabilities:
        with capability(name):
            y = linear(x, *pack_int8(weight), bias, 4)
        assert torch.equal(y[:2], bias.expand(2, 4))
        assert bool(y[2:4].isnan().all()) and bool(y[4].isfinite().all())


def test_packing_is_undone() -> None:
    weight = torch.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (21, 10)).float()
    weight[:, 0] = WEIGHT_MAX
    packed, scales = pack_int8(weight)
    assert packed.shape == (2, 3, 16, 4) and scales.shape == (2, 32)
    assert torch.equal(unpack_int8(packed, 21, 10).float(), weight)
    assert torch.equal(scales[1, :21], 128 * weight.sum(1))


def test_weights_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pack_int8(torch.tensor([[1.0, torch.nan]]))
