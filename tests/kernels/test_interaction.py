"""The fused first layer on CPUs: parity on every path, errors at the door, export."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ranker.arches.interaction import interaction_first_layer as reference
from serving.kernels.interaction.ops import interaction_first_layer

TOLERANCE = 5e-6  # of the largest value: float32 sums of up to E + K products, in another order

LENGTHS = [[1], [0], [], [0, 0], [3, 0, 1, 5], [4], [8, 4], [0, 7, 0, 0, 2], [500], [61, 1, 139]]
WIDTHS = [(256, 64, 4), (128, 32, 8), (37, 19, 3), (1, 1, 1), (16, 16, 1), (65, 130, 2), (24, 8, 0)]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("H", "E", "K"), WIDTHS)
@pytest.mark.usefixtures("nan_filled_memory")
def test_matches_the_float64_specification_on_every_path(
    make_operands: Any, expected: Any, error: Any, capability: Any, capabilities: list[str],
    lengths: list[int], H: int, E: int, K: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    operands = make_operands(lengths, H, E, K, dtype=dtype)
    for name in capabilities:
        with capability(name):
            out = interaction_first_layer(*operands)
        assert out.shape == (sum(lengths), H)
        assert error(out, expected(*operands)) <= TOLERANCE, name


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=9),
    H=st.integers(1, 70),
    E=st.integers(1, 40),
    K=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_matches_the_models_own_function(
    make_operands: Any, error: Any, capability: Any, capabilities: list[str],
    lengths: list[int], H: int, E: int, K: int, seed: int,
) -> None:  # fmt: skip
    lengths = [*lengths, 1]  # the reference's einsum needs a candidate
    operands = make_operands(lengths, H, E, K, seed=seed)
    for name in capabilities:
        with capability(name):
            assert error(interaction_first_layer(*operands), reference(*operands).double()) <= TOLERANCE, name


def test_the_paths_really_differ(make_operands: Any, capability: Any, capabilities: list[str]) -> None:
    """A forced path that silently ran another one would give the same bits."""
    operands = make_operands([200], 64, 100, 4)
    outputs = []
    for name in capabilities[:3]:  # this operator has nothing beyond avx512
        with capability(name):
            outputs.append(interaction_first_layer(*operands))
    for first, second in pairwise(outputs):
        assert not torch.equal(first, second)


def test_a_candidate_does_not_depend_on_the_batch(
    make_operands: Any, capability: Any, capabilities: list[str]
) -> None:
    """Bit-identical alone and among others, on one thread and on two."""
    x, e, p, q, w, offsets = make_operands([301, 0, 702], 67, 21, 3)
    threads = torch.get_num_threads()
    for name in capabilities:
        with capability(name):
            whole = interaction_first_layer(x, e, p, q, w, offsets)
            for row, request in ((0, 0), (299, 0), (300, 0), (301, 2), (1002, 2)):
                alone = interaction_first_layer(
                    x[row : row + 1], e[row : row + 1], p[request : request + 1], q[request : request + 1], w,
                    torch.tensor([0, 1]),
                )  # fmt: skip
                assert torch.equal(alone[0], whole[row])
            torch.set_num_threads(1 if threads > 1 else 2)
            assert torch.equal(interaction_first_layer(x, e, p, q, w, offsets), whole)
            torch.set_num_threads(threads)


def test_nan_and_infinity_pass_as_in_the_reference(
    make_operands: Any, capability: Any, capabilities: list[str]
) -> None:
    x, e, p, q, w, offsets = make_operands([9, 4], 21, 9, 2)
    x[3, 7], x[12, 20], p[1, 0] = float("nan"), float("inf"), float("-inf")
    wanted = reference(x, e, p, q, w, offsets)
    for name in capabilities:
        with capability(name):
            out = interaction_first_layer(x, e, p, q, w, offsets)
        torch.testing.assert_close(out, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)


def _replaced(operands: tuple[Tensor, ...], name: str, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    names = ["x", "e", "p", "q", "w", "offsets"]
    return [change(operand) if at == name else operand for at, operand in zip(names, operands, strict=True)]


@pytest.mark.parametrize(
    ("name", "change", "kind", "message"),
    [
        ("x", lambda x: x.double(), TypeError, "x is Double; it must be float32"),
        ("x", lambda x: x[0], ValueError, r"x has shape \[8\]; it must be \[C, H\]"),
        ("e", lambda e: e[1:], ValueError, r"e has shape \[4, 6\]; it must be \[5, 6\]"),
        ("p", lambda p: p.t().contiguous().t(), ValueError, r"p has strides \[1, 2\]; it must be contiguous"),
        ("q", lambda q: q[0], ValueError, r"q has shape \[3, 6\]; it must be \[B, K, E\]"),
        ("w", lambda w: w[:, 1:], ValueError, r"w has shape \[3, 7\]; it must be \[3, 8\]"),
        ("offsets", lambda o: o.float(), TypeError, "offsets is Float; it must be int64 or int32"),
        ("offsets", lambda o: o[1:], ValueError, r"offsets has shape \[2\]; it must be \[3\]"),
        ("offsets", lambda o: o + 1, ValueError, r"offsets\[0\] is 1; it must be 0"),
        ("offsets", lambda o: torch.tensor([0, 7, 5]), ValueError, r"offsets\[2\] is 5; .* at least offsets\[1\], 7"),
        ("offsets", lambda o: torch.tensor([0, -1, 5]), ValueError, r"offsets\[1\] is -1; it must be at least"),
        ("offsets", lambda o: torch.tensor([0, 2, 6]), ValueError, r"offsets\[2\] is 6; .* candidates, 5"),
    ],
)  # fmt: skip
def test_wrong_operands_are_named(
    make_operands: Any, name: str, change: Callable[[Tensor], Tensor], kind: type[Exception], message: str
) -> None:
    operands = make_operands([2, 3], 8, 6, 3)
    with pytest.raises(kind, match=message):
        interaction_first_layer(*_replaced(operands, name, change))
    assert interaction_first_layer(*operands).shape == (5, 8)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_opcheck(make_operands: Any, dtype: torch.dtype) -> None:
    operands = make_operands([3, 0, 4], 24, 10, 2, dtype=dtype)
    results = torch.library.opcheck(torch.ops.marquee.interaction_first_layer.default, operands)
    assert set(results.values()) == {"SUCCESS"}


def test_backward_says_that_there_is_none(make_operands: Any) -> None:
    x, *others = make_operands([3], 8, 4, 2)
    out = interaction_first_layer(x.requires_grad_(), *others)
    with pytest.raises(
        RuntimeError, match="derivative for marquee::interaction_first_layer is not implemented"
    ):
        out.sum().backward()


class _Layer(nn.Module):
    def forward(self, x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        return interaction_first_layer(x * 2, e, p, q, w, offsets) + 1


def test_exports_with_any_number_of_requests_and_candidates(make_operands: Any) -> None:
    H, E, K = 24, 10, 3
    B, C = torch.export.Dim("B"), torch.export.Dim("C")
    shapes = {"x": {0: C}, "e": {0: C}, "p": {0: B}, "q": {0: B}, "w": {}, "offsets": {0: B + 1}}
    program = torch.export.export(_Layer(), make_operands([3, 4], H, E, K), dynamic_shapes=shapes)

    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "marquee.interaction_first_layer.default" in operators
    for lengths in ([5], [1, 0, 300, 2]):
        operands = make_operands(lengths, H, E, K, seed=1)
        assert torch.equal(program.module()(*operands), _Layer()(*operands))
