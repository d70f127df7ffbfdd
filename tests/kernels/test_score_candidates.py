"""Candidate scoring on CPUs: parity with the plain interaction on every path, errors at the door, export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ranker.arches.interaction import Interaction, InteractionConfig, Widths
from serving.fused_candidates import FusedCandidates
from serving.kernels.candidates.ops import ItemTables, Weights, score_candidates
from serving.kernels.linear.panels import pack
from serving.no_fused_form import NoFusedForm
from serving.quantise import QuantisedRows
from serving.split import ItemRows

TOLERANCE = 2e-6  # of the largest logit
ITEMS, VECTOR = 37, 21

Call = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def _interaction(
    widths: tuple[int, ...] = (48, 24),
    E: int = 20,
    K: int = 3,
    F: int = 5,
    D: int = 0,
    N: int = 2,
    seed: int = 0,
    int8_rows: bool = False,
) -> Interaction:
    torch.manual_seed(seed)
    config = InteractionConfig(num_dots=K, dot_width=E, hidden_widths=widths)
    interaction = Interaction(config, Widths(VECTOR, 8, F, D), N).eval().requires_grad_(False)
    tables = {
        "candidate_projection": torch.randn(ITEMS, widths[0]),
        "candidate_dots": torch.randn(ITEMS, E) * 0.3,
    }
    for name, table in tables.items():
        interaction.set_submodule(name, QuantisedRows(table) if int8_rows else ItemRows(table))
    return interaction


def _call(
    lengths: list[int], F: int = 5, D: int = 0, dtype: torch.dtype = torch.int64, seed: int = 0
) -> Call:
    random = torch.Generator().manual_seed(seed)
    C, B = sum(lengths), len(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(dtype)
    features = torch.randn(C, F, generator=random) if F else None
    crossed = torch.randn(C, D, generator=random) if D else None
    vector = torch.randn(B, VECTOR, generator=random)
    return vector, torch.randint(0, ITEMS, (C,), generator=random), offsets, features, crossed


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [[1], [3, 0, 1, 5], [0, 7, 0, 0, 2], [24], [61, 1, 139]], ids=str)
@pytest.mark.parametrize(
    ("widths", "E", "K", "F", "D"),
    [((512, 256), 256, 8, 20, 0), ((48, 24), 20, 3, 0, 0), ((1,), 1, 1, 1, 1), ((15, 17), 17, 17, 5, 15),
     ((17, 15, 33), 15, 1, 0, 7), ((32, 100, 16, 8), 64, 16, 3, 32)],
)  # fmt: skip
@pytest.mark.usefixtures("nan_filled_memory")
def test_matches_the_interaction_on_every_path(
    error: Any, capability: Any, capabilities: list[str],
    lengths: list[int], widths: tuple[int, ...], E: int, K: int, F: int, D: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    plain = _interaction(widths, E, K, F, D)
    call = _call(lengths, F, D, dtype)
    expected = plain.double()(*(t.double() if t is not None and t.is_floating_point() else t for t in call))
    fused = FusedCandidates(_interaction(widths, E, K, F, D))
    for name in capabilities:
        with capability(name):
            assert error(fused(*call), expected) <= TOLERANCE, name


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any),
    widths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 18), st.integers(0, 9), st.integers(0, 20)),
    int8=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_sizes_and_int8_rows(
    error: Any, capability: Any, capabilities: list[str],
    lengths: list[int], widths: list[int], sizes: tuple[int, int, int, int], int8: bool, seed: int,
) -> None:  # fmt: skip
    E, K, F, D = sizes
    plain = _interaction(tuple(widths), E, K, F, D, seed=seed, int8_rows=int8)
    fused = FusedCandidates(copy.deepcopy(plain))
    call = _call(lengths, F, D, seed=seed)
    for name in capabilities:
        with capability(name):
            assert error(fused(*call), plain(*call).double()) <= 1e-5, name


@pytest.mark.parametrize("int8", [False, True])
def test_a_candidate_does_not_depend_on_the_batch(
    capability: Any, capabilities: list[str], int8: bool
) -> None:
    """Bit-identical alone and among others, on one thread and on three."""
    fused = FusedCandidates(_interaction((67, 33), 21, 3, 5, 9, int8_rows=int8))
    vector, rows, offsets, features, crossed = _call([31, 0, 102], 5, 9)
    assert features is not None and crossed is not None
    threads = torch.get_num_threads()

    def score(requests: slice, candidates: slice, offsets: Tensor) -> Tensor:
        return fused(vector[requests], rows[candidates], offsets, features[candidates], crossed[candidates])

    for name in capabilities:
        with capability(name):
            whole = score(slice(None), slice(None), offsets)
            for row, request in ((0, 0), (30, 0), (31, 2), (132, 2)):
                alone = score(slice(request, request + 1), slice(row, row + 1), torch.tensor([0, 1]))
                assert torch.equal(alone[0], whole[row])
            torch.set_num_threads(3 if threads == 1 else 1)
            assert torch.equal(score(slice(None), slice(None), offsets), whole)
            torch.set_num_threads(threads)


def test_nan_stays_nan(capability: Any, capabilities: list[str]) -> None:
    fused = FusedCandidates(_interaction())
    vector, rows, offsets, features, _ = _call([4, 3])
    assert features is not None
    features[2, 1] = float("nan")
    for name in capabilities:
        with capability(name):
            assert fused(vector, rows, offsets, features).isnan().all(1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(("H", "N", "D"), [(0, 2, 0), (16, 2, 0), (0, 2, 3), (8, 0, 3)])
def test_layers_without_inputs_or_outputs(
    capability: Any, capabilities: list[str], H: int, N: int, D: int
) -> None:
    """Sums of nothing are zeros: the head's bias, of which there may be none."""
    rows, offsets, bias = torch.tensor([3, 1, 4]), torch.tensor([0, 3]), torch.arange(float(N))
    tables = [torch.randn(5, H), torch.randn(5, 4), [], torch.zeros(1, H), torch.zeros(1, 1, 4)]
    weights = [pack(torch.randn(H, D)), pack(torch.zeros(N, H)), bias]
    for name in capabilities:
        with capability(name):
            logits = torch.ops.marquee.score_candidates(
                rows, offsets, *tables, torch.zeros(1, H), None, torch.randn(3, D), weights, [], N
            )
        assert torch.equal(logits, bias.expand(3, N)), name


def test_what_has_no_fused_form_says_why() -> None:
    widths = Widths(VECTOR, 8, 0, 0)
    with pytest.raises(NoFusedForm, match="cross network"):
        FusedCandidates(Interaction(InteractionConfig(cross_layers=1), widths, 2))
    with pytest.raises(NoFusedForm, match="each task's own"):
        FusedCandidates(Interaction(InteractionConfig(head_widths=(8,)), widths, 2))


def _operands(lengths: list[int]) -> list[Any]:
    """Of the operator, for E = 20, K = 3, F = 5, H = 48."""
    fused = FusedCandidates(_interaction())
    vector, rows, offsets, features, _ = _call(lengths)
    weights = [fused.get_buffer(f"layer_{at}") for at in range(5)]
    both = fused.profile(vector)
    p, q = both[:, :48].contiguous(), both[:, 48:].unflatten(1, (3, 20))
    return [rows, offsets, fused.x_table, fused.e_table, [], p, q, fused.dots, features, None, weights, [], 2]


@pytest.mark.parametrize(
    ("at", "change", "kind", "message"),
    [
        (0, lambda r: r.int(), TypeError, "rows is Int; it must be int64"),
        (0, lambda r: r + ITEMS, ValueError, r"rows\[0\] is \d+; the tables have 37 rows"),
        (0, lambda r: -r - 1, ValueError, r"rows\[0\] is -\d+; the tables have 37 rows"),
        (1, lambda o: o.float(), TypeError, "offsets is Float; it must be int64 or int32"),
        (1, lambda o: o[1:], ValueError, r"offsets has shape \[2\]; it must be \[3\]"),
        (1, lambda o: o + 1, ValueError, r"offsets\[0\] is 1; it must be 0"),
        (1, lambda o: torch.tensor([0, 7, 5]), ValueError, r"offsets\[2\] is 5; .* at least offsets\[1\], 7"),
        (1, lambda o: torch.tensor([0, 2, 6]), ValueError, r"offsets\[2\] is 6; .* candidates, 5"),
        (2, lambda x: x.double(), TypeError, "x_table is Double; it must be float32"),
        (3, lambda e: e[1:], ValueError, r"e_table has shape \[36, 20\]; it must be \[37, 20\]"),
        (4, lambda s: [torch.ones(37)], ValueError, "table_scales has 1 tensors; it must have 2"),
        (4, lambda s: [torch.ones(37)] * 2, TypeError, "x_table is Float; with scales it must be int8"),
        (5, lambda p: p.t().contiguous().t(), ValueError, "p has strides .*; it must be contiguous"),
        (5, lambda p: p[:1].expand(3, -1), ValueError, r"p has shape \[3, 48\]; it must be \[2, 48\]"),
        (6, lambda q: q.mT.contiguous().mT, ValueError, "q has strides .*; it must be contiguous"),
        (6, lambda q: q[0], ValueError, r"q has shape \[3, 20\]; it must be \[B, K, E\]"),
        (7, lambda w: w[:, 1:], ValueError, r"dot_weights has shape \[3, 47\]; it must be \[3, 48\]"),
        (8, lambda f: f[1:], ValueError, r"features has shape \[4, 5\]; it must be \[5, 5\]"),
        (10, lambda w: w[:-1], ValueError, "every layer after the first needs packed weights and a bias"),
        (10, lambda w: [w[0][1:], *w[1:]], ValueError, r"weights\[0\] has shape \[2, 5, 16\]; it must be \[3, 5, 16\]"),
        (12, lambda n: 3, ValueError, "the last layer has 2 outputs; num_tasks is 3"),
    ],
)  # fmt: skip
def test_wrong_operands_are_named(at: int, change: Any, kind: type[Exception], message: str) -> None:
    operands = _operands([2, 3])
    assert torch.ops.marquee.score_candidates(*operands).shape == (5, 2)
    operands[at] = change(operands[at])
    with pytest.raises(kind, match=message):
        torch.ops.marquee.score_candidates(*operands)


def test_p_and_q_may_lie_in_the_same_rows() -> None:
    p, q, x_table, e_table = torch.randn(2, 6), torch.randn(2, 3, 4), torch.randn(5, 6), torch.randn(5, 4)
    rows, offsets = torch.tensor([4, 0, 2]), torch.tensor([0, 1, 3])
    weights = Weights(torch.randn(3, 6), [pack(torch.randn(1, 6)), torch.randn(1)])
    joined = torch.cat((p, q.flatten(1)), dim=1)

    def score(first: Tensor, second: Tensor | None) -> Tensor:
        return score_candidates(
            rows, offsets, ItemTables(x_table, e_table), (first, second), (None, None), weights
        )

    assert torch.equal(score(joined, None), score(p, q))
    with pytest.raises(ValueError, match=r"p has shape \[2, 6\] and there is no q; it must be \[B, 18\]"):
        score(p, None)


def test_opcheck() -> None:
    results = torch.library.opcheck(torch.ops.marquee.score_candidates.default, tuple(_operands([3, 0, 4])))
    assert set(results.values()) == {"SUCCESS"}


def test_exports_with_any_number_of_requests_and_candidates() -> None:
    fused = FusedCandidates(_interaction())
    B, C = torch.export.Dim("B"), torch.export.Dim("C")
    shapes = ({0: B}, {0: C}, {0: B + 1}, {0: C})
    program = torch.export.export(fused, _call([3, 4])[:4], dynamic_shapes=shapes)
    assert "marquee.score_candidates.default" in [str(node.target) for node in program.graph.nodes]
    for lengths in ([5], [1, 0, 300, 2]):
        call = _call(lengths, seed=1)[:4]
        assert torch.equal(program.module()(*call), fused(*call))
