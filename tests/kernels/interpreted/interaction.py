"""`first_layer_gpu` against the model's own first layer; run by `test_interaction_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ranker.arches.interaction import interaction_first_layer as reference
from serving.kernels.interaction.gpu import first_layer_gpu

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("lengths", "H", "E", "K"),
    [
        ([3, 0, 7], 256, 64, 4),
        ([1], 37, 19, 3),
        ([0, 70, 0], 300, 70, 1),
        ([2, 7], 16, 8, 0),
        ([0, 0, 5, 0], 1, 1, 1),
        ([5, 6, 1, 0, 18, 1], 65, 33, 2),
        ([], 4, 3, 2),
        ([0], 4, 3, 2),
    ],
)
def test_parity(
    make_operands: Callable[..., Any],
    error: Callable[..., float],
    lengths: list[int],
    H: int,
    E: int,
    K: int,
    dtype: torch.dtype,
) -> None:
    x, e, p, q, w, offsets = make_operands(lengths, H, E, K, seed=1, dtype=dtype)
    expected = reference(x.double(), e.double(), p.double(), q.double(), w.double(), offsets)
    assert error(first_layer_gpu(x, e, p, q, w, offsets), expected) <= 5e-6


def test_nan_stays_nan() -> None:
    nan = torch.full((1, 4), float("nan"))
    row, offsets = nan[:, :1].clone(), torch.tensor([0, 1])
    assert first_layer_gpu(nan, row, nan, row[None], nan, offsets).isnan().all()


@pytest.mark.parametrize(
    ("at", "operand", "kind"),
    [
        (0, torch.zeros(1, 4, dtype=torch.float64), TypeError),
        (1, torch.zeros(0, 4), ValueError),
        (2, torch.zeros(4, 1).t().expand(1, 4)[:, ::2], ValueError),
        (5, torch.tensor([0.0, 1.0]), TypeError),
    ],
)
def test_refuses(at: int, operand: torch.Tensor, kind: type[Exception]) -> None:
    zeros, offsets = torch.zeros(1, 4), torch.tensor([0, 1])
    operands = [zeros, zeros[:, :1].clone(), zeros, zeros[:, None, :1].clone(), zeros, offsets]
    operands[at] = operand
    with pytest.raises(kind, match="must be"):
        first_layer_gpu(*operands)
