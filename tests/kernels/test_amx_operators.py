"""AMX inside the operators: sizes that reach every branch of its products, against float64.

`test_amx.py` has the products by themselves; what holds on every path is with each operator's own tests.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.attention_tiles import AttentionConfig
from foundation.decoder import Decoder, DecoderConfig
from foundation.layout import layout
from serving.fused_decoder import FusedDecoder
from serving.kernels.extension import cpu_capability
from serving.kernels.linear.int8 import pack_int8
from serving.kernels.linear.ops import linear
from serving.kernels.linear.panels import pack

pytestmark = pytest.mark.skipif(cpu_capability() != "amx", reason="the processor, or this run, has no AMX")

# What is left out of a product is 2^-21 of it at most, and rounding comes on top.
OF_ITS_TERMS = 5e-7
OF_THE_LARGEST = 1e-6

INPUTS = [1, 2, 3, 31, 32, 33, 62, 64, 65, 127, 128, 129, 130, 159, 160, 256, 257, 300]
OUTPUTS = [1, 15, 16, 17, 32, 33, 48, 80]

few = settings(max_examples=25, deadline=None, derandomize=True)


def _normal(R: int, K: int, N: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(R, K, generator=random), torch.randn(N, K, generator=random)


@few
@given(
    R=st.sampled_from([1, 16, 17, 32, 33, 95, 96, 97, 200]), K=st.sampled_from([60, 64, 65, 128, 192]),
    N=st.sampled_from(OUTPUTS), has_bias=st.booleans(), threads=st.sampled_from([1, 2]),
)  # fmt: skip
def test_int8_linear_layers_are_those_of_vnni(
    capability: Any, R: int, K: int, N: int, has_bias: bool, threads: int
) -> None:
    x, weight = _normal(R, K, N)
    packed, scales = pack_int8(weight)
    bias = torch.linspace(-1, 1, N) if has_bias else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with capability("avx512_vnni"):
        wanted = linear(x, packed, scales, bias, N)
    assert torch.equal(linear(x, packed, scales, bias, N), wanted)
    torch.set_num_threads(before)


def _products_by_scoring(x: Tensor, weight: Tensor) -> Tensor:
    """`x weightᵀ` of rows without a negative value, by `score_candidates`: its head, everything before it nothing."""
    C, H = x.shape
    nothing = [torch.zeros(C, 1), [], torch.zeros(1, H), torch.zeros(1, 1, 1), torch.zeros(1, H), None, None]
    N = weight.shape[0]
    offsets, weights = torch.tensor([0, C]), [pack(weight), torch.zeros(N)]
    return torch.ops.marquee.score_candidates(torch.arange(C), offsets, x, *nothing, weights, [], N)


def _crossed_by_scoring(x: Tensor, weight: Tensor) -> Tensor:
    """The same of any row, by the crossed candidates' layer: both signs of it through relu, then their difference."""
    (C, _), N = x.shape, weight.shape[0]
    both, difference = torch.cat((weight, -weight)), torch.cat((torch.eye(N), -torch.eye(N)), 1)
    H = 2 * N
    nothing = [
        torch.zeros(C, H),
        torch.zeros(C, 1),
        [],
        torch.zeros(1, H),
        torch.zeros(1, 1, 1),
        torch.zeros(1, H),
    ]
    weights = [pack(both), pack(difference), torch.zeros(N)]
    offsets = torch.tensor([0, C])
    return torch.ops.marquee.score_candidates(torch.arange(C), offsets, *nothing, None, x, weights, [], N)


@few
@given(
    C=st.sampled_from([1, 16, 17, 32, 33, 127, 128, 129, 257]), K=st.sampled_from(INPUTS), N=st.sampled_from(OUTPUTS),
    threads=st.sampled_from([1, 2, 3]), seed=st.integers(0, 2**31),
)  # fmt: skip
@pytest.mark.usefixtures("nan_filled_memory")
def test_scored_candidates_of_any_size(
    error_of_terms: Any, C: int, K: int, N: int, threads: int, seed: int
) -> None:
    x, weight = _normal(C, K, N, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert error_of_terms(_products_by_scoring(x.abs(), weight), x.abs(), weight) <= OF_ITS_TERMS
    assert error_of_terms(_crossed_by_scoring(x, weight), x, weight) <= OF_ITS_TERMS
    torch.set_num_threads(before)


def test_scored_candidates_are_exact_to_a_millionth() -> None:
    x, weight = _normal(300, 512, 96)
    for found, rows in (
        (_products_by_scoring(x.abs(), weight), x.abs()),
        (_crossed_by_scoring(x, weight), x),
    ):
        wanted = rows.double() @ weight.double().T
        assert float((found - wanted).abs().max() / wanted.abs().max()) <= OF_THE_LARGEST


@few
@given(smallest=st.integers(-30, 30), largest=st.integers(-30, 30), seed=st.integers(0, 2**31))
@example(smallest=-30, largest=30, seed=0)
@example(smallest=-30, largest=-30, seed=0)
@example(smallest=30, largest=30, seed=0)
def test_values_of_every_magnitude(error_of_terms: Any, smallest: int, largest: int, seed: int) -> None:
    """Rows within 1e-30 and 1e30, weights of 1 to 1e3: each output is held to the sum of its own terms."""
    smallest, largest = sorted((smallest, largest))
    random = torch.Generator().manual_seed(seed)
    x, weight = _normal(33, 161, 33, seed)
    of_values = torch.rand(33, 161, generator=random, dtype=torch.float64) * (largest - smallest) + smallest
    x = (x.sign() * 10**of_values).float()
    weight *= (10 ** (3 * torch.rand(33, 1, generator=random))).float()
    assert error_of_terms(_products_by_scoring(x.abs(), weight), x.abs(), weight) <= OF_ITS_TERMS
    assert error_of_terms(_crossed_by_scoring(x, weight), x, weight) <= OF_ITS_TERMS


def test_a_bad_candidate_leaves_its_neighbours_alone() -> None:
    x, weight = _normal(140, 161, 33)
    wanted = _crossed_by_scoring(x, weight)
    x[17, 160], x[31, 0] = torch.nan, torch.inf
    found = _crossed_by_scoring(x, weight)
    is_bad = torch.tensor([c in (17, 31) for c in range(140)])
    assert found[is_bad].isnan().all()
    assert torch.equal(found[~is_bad], wanted[~is_bad])


# Width 176: 11 panels each way, and more inputs than a block; 132: half a panel at the end of each.
@pytest.mark.parametrize("size", [(176, 1), (132, 2)], ids=str)
@pytest.mark.usefixtures("nan_filled_memory")
def test_decoders_of_odd_panels_and_long_blocks(error: Any, size: tuple[int, int]) -> None:
    """Against the model in float64; the largest block, of 144 rows, more rows than one has, few rows."""
    torch.manual_seed(0)
    decoder = Decoder(
        DecoderConfig(size[0], num_layers=2, num_heads=size[1], attention=AttentionConfig())
    ).eval()
    for parameter in decoder.requires_grad_(False).parameters():
        parameter.normal_(std=0.3 if parameter.dim() == 1 else 1.5 / size[0] ** 0.5)
    fused = FusedDecoder(decoder)
    exact = Decoder(decoder.config).eval().requires_grad_(False).double()
    exact.load_state_dict(decoder.state_dict())
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for lengths in ([1], [16], [17], [32], [33], [144], [145], [264], [200, 65], [1] * 17, [9, 8]):
            x = torch.randn(sum(lengths), size[0], generator=torch.Generator().manual_seed(1))
            where = layout(torch.tensor(lengths))
            wanted = exact.read(x.double(), where, num_kept=1)
            found = fused.read(x, where, num_kept=1)
            assert error(found.layers[0], wanted.layers[0]) <= 2 * OF_THE_LARGEST, (lengths, threads)
            assert torch.equal(fused.read_last(x, where).layers[0], found.layers[0][where.last_index])
    torch.set_num_threads(before)
