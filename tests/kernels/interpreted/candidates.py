"""`score_candidates_gpu` against the interaction that the model calls; run by `test_candidates_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ranker.arches.interaction import Interaction, InteractionConfig, Widths, interaction_first_layer
from serving.kernels.candidates.gpu import score_candidates_gpu
from serving.kernels.linear.panels import pack

PROFILE, ITEM, ITEMS, TASKS = 20, 12, 11, 3


class Case(NamedTuple):
    lengths: list[int]
    hidden_widths: tuple[int, ...]
    K: int
    E: int
    F: int = 0
    D: int = 0
    dtype: torch.dtype = torch.float32
    index: torch.dtype = torch.int64


def operands_of(case: Case) -> tuple[list[Any], Tensor]:
    """Operands of the op, and the logits by the model in float64, of the table rows that the op reads."""
    torch.manual_seed(0)
    config = InteractionConfig(num_dots=case.K, dot_width=case.E, hidden_widths=case.hidden_widths)
    model = Interaction(config, Widths(PROFILE, ITEM, case.F, case.D), TASKS)
    model.requires_grad_(False)
    vector, items, C = torch.randn(len(case.lengths), PROFILE), torch.randn(ITEMS, ITEM), sum(case.lengths)
    features = torch.randn(C, case.F) if case.F else None
    crossed = torch.randn(C, case.D) if case.D else None
    rows = torch.randint(0, ITEMS, (C,))
    offsets = torch.tensor([0, *case.lengths]).cumsum(0).to(case.index)
    tables, scales = [model.candidate_projection(items), model.candidate_dots(items)], []
    if case.dtype == torch.int8:
        scales = [table.abs().amax(1) / 127 for table in tables]
        tables = [
            (table / scale[:, None]).round().char() for table, scale in zip(tables, scales, strict=True)
        ]
    p, q = model.profile_projection(vector), model.profile_dots(vector).view(-1, case.K, case.E)
    assert model.dot_weights is not None and isinstance(model.heads, nn.Linear)
    inputs = [layer for layer in (model.feature_projection, model.crossing_projection) if layer is not None]
    weights = [pack(layer.weight) for layer in inputs]
    for layer in (*model.mlp, model.heads):
        if isinstance(layer, nn.Linear):
            weights += [pack(layer.weight), layer.bias]
    operands = [
        rows,
        offsets,
        *tables,
        scales,
        p,
        q,
        model.dot_weights,
        features,
        crossed,
        weights,
        [],
        TASKS,
    ]

    x, e = (
        table[rows].double() * (scale[rows, None].double() if scales else 1.0)
        for table, scale in zip(tables, scales or tables, strict=True)
    )
    for layer, given_ in zip(inputs, [g for g in (features, crossed) if g is not None], strict=True):
        x = x + given_.double() @ layer.weight.double().t()
    first = interaction_first_layer(x, e, p.double(), q.double(), model.dot_weights.double(), offsets)
    exact = deepcopy(model).double()
    return operands, exact.heads(exact.mlp(first))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(
    "case",
    [
        Case([3, 0, 7], (40, 24), 8, 19, F=3),
        Case([3, 0, 7], (40, 24), 8, 19, F=3, dtype=torch.int8, index=torch.int32),
        Case([1], (37,), 1, 16, F=2, D=8),
        Case([0, 40, 0, 0, 3], (65, 33, 17), 5, 33, F=9, D=24),
        Case([5], (16, 300), 2, 40, dtype=torch.int8),
        Case([], (16,), 1, 1),
        Case([0, 0], (16, 8), 1, 1, F=1),
    ],
)
def test_parity(error: Callable[..., float], case: Case) -> None:
    operands, expected = operands_of(case)
    logits = score_candidates_gpu(*operands)
    assert logits.shape == expected.shape
    assert error(logits, expected) <= 5e-6


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=4),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 17), st.integers(1, 20), st.integers(0, 3), st.integers(0, 5)),
)
def test_any_sizes(
    error: Callable[..., float], lengths: list[int], widths: list[int], sizes: tuple[int, int, int, int]
) -> None:
    operands, expected = operands_of(Case(lengths, tuple(widths), *sizes))
    assert error(score_candidates_gpu(*operands), expected) <= 5e-6


def test_a_candidate_scores_the_same_alone() -> None:
    (rows, offsets, *rest), _ = operands_of(Case([5, 35], (40, 24), 2, 16))
    p, q = rest[3], rest[4]
    together = score_candidates_gpu(rows, offsets, *rest)
    rest[3:5] = [p[1:], q[1:]]
    alone = score_candidates_gpu(rows[-1:], torch.tensor([0, 1]), *rest)
    assert torch.equal(alone, together[-1:])


@pytest.mark.parametrize(
    ("at", "operand", "kind", "message"),
    [
        (0, torch.zeros(3, dtype=torch.int32), TypeError, "rows is torch.int32"),
        (1, torch.zeros(3, dtype=torch.int64), ValueError, "offsets has shape"),
        (2, torch.zeros(11, 40).char(), TypeError, "x_table is torch.int8"),
        (4, [torch.zeros(11)], ValueError, "table_scales 1 tensors"),
        (8, torch.zeros(3, 4), ValueError, "there are 4 weights"),
        (10, [torch.zeros(1, 10, 16, 4).char()] * 4, TypeError, "int8; on a GPU"),
        (11, [torch.zeros(2, 48)], TypeError, "int8; on a GPU"),
        (12, 2, ValueError, "there are 2 tasks"),
    ],
)
def test_refuses(at: int, operand: object, kind: type[Exception], message: str) -> None:
    operands, _ = operands_of(Case([3], (40, 24), 2, 16))
    operands[at] = operand
    with pytest.raises(kind, match=message):
        score_candidates_gpu(*operands)


def test_refuses_features_of_another_width() -> None:
    operands, _ = operands_of(Case([3], (40, 24), 2, 16, F=3))
    operands[8] = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="weights of features has shape"):
        score_candidates_gpu(*operands)


def test_p_and_q_may_lie_in_the_same_rows() -> None:
    operands, expected = operands_of(Case([3, 4], (40, 24), 2, 16))
    p, q = operands[5], operands[6]
    operands[5:7] = [torch.cat((p, q.flatten(1)), dim=1), None]
    torch.testing.assert_close(score_candidates_gpu(*operands), expected.float(), rtol=1e-5, atol=1e-5)
    operands[5] = p
    with pytest.raises(ValueError, match="there is no q"):
        score_candidates_gpu(*operands)
