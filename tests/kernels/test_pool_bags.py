"""`marquee::pool_bags` against the plain lookups that it takes the place of."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from ranker.arches.sparse import PaddedSparseArch
from ranker.features.columns import SparseColumn
from serving.fused_bags import FusedBags, FusedFacets
from serving.kernels.bags.ops import pool_bags


def _sparse(seed: int) -> PaddedSparseArch:
    """A summed feature of one column, an averaged one of three, a summed one of two; one beyond 32."""
    columns = [
        SparseColumn("one", 0, 1, "sum", 5, 4),
        SparseColumn("mean", 1, 3, "mean", 7, 8),
        SparseColumn("sum", 4, 2, "sum", 2, 36),
    ]
    sparse = PaddedSparseArch(columns)
    random = torch.Generator().manual_seed(seed)
    for table in sparse.tables:
        table.data = torch.randn(table.shape, generator=random)
    return sparse


def _ids(rows: int, seed: int, sparse: PaddedSparseArch) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    parts = [
        torch.randint(-1, column.num_rows, (rows, column.num_columns), generator=random)
        for column in sparse.columns
    ]
    return torch.cat(parts, dim=1)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 9), seed=st.integers(0, 1000))
def test_it_is_what_the_plain_lookups_give(rows: int, seed: int) -> None:
    sparse = _sparse(seed)
    ids = _ids(rows, seed, sparse)
    torch.testing.assert_close(FusedBags.from_sparse(sparse)(ids), sparse(ids), rtol=1e-6, atol=1e-6)


def test_many_rows_are_shared_among_threads_to_the_bit() -> None:
    sparse = _sparse(1)
    ids = _ids(20_000, 2, sparse)
    fused, before = FusedBags.from_sparse(sparse), torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(fused(ids))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_padding_among_facets_adds_nothing_whatever_its_row_holds() -> None:
    facets = torch.nn.EmbeddingBag(6, 4, mode="sum", padding_idx=0)
    with torch.no_grad():
        facets.weight[0] = float("nan")
    ids = torch.tensor([[0, 0], [3, 0], [5, 2]])
    expected = torch.stack((torch.zeros(4), facets.weight[3], facets.weight[5] + facets.weight[2]))
    assert torch.equal(FusedFacets(facets)(ids), expected.detach())


def test_it_keeps_the_rules_of_an_operator() -> None:
    ids, tables = torch.tensor([[0, -1, 2], [1, 1, -1]]), [torch.randn(2, 3), torch.randn(3, 5)]
    torch.library.opcheck(torch.ops.marquee.pool_bags.default, (ids, tables, [1, 2], [False, True], 0))


def test_backward_through_it_raises() -> None:
    table = torch.randn(3, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        pool_bags(torch.tensor([[1]]), [table], [1], [False], 0).sum().backward()


TABLE = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("ids", "tables", "columns", "least", "error", "message"),
    [
        (torch.tensor([[0, 3]]), [TABLE], [2], 0, ValueError, r"ids\[0, 1\] is 3; the table has 3 rows"),
        (torch.tensor([[0]]), [TABLE], [2], 0, ValueError, r"ids has shape \[1, 1\].* must be \[R, 2\]"),
        (
            torch.tensor([[0]]),
            [TABLE],
            [2**62],
            0,
            ValueError,
            "4611686018427387904; it must be positive, and fit 32",
        ),
        (torch.tensor([[0]]), [TABLE], [1, 1], 0, ValueError, "1 tables, 2 columns and 1 means"),
        (torch.tensor([[0.0]]), [TABLE], [1], 0, TypeError, "ids is Float; it must be int64"),
        (torch.tensor([[0]]), [TABLE.double()], [1], 0, TypeError, r"tables\[0\] is Double"),
        (torch.tensor([[0]]), [TABLE.T], [1], 0, ValueError, r"tables\[0\].*contiguous"),
        (torch.tensor([[0]]), [TABLE], [0], 0, ValueError, r"columns\[0\] is 0"),
        (torch.tensor([[0]]), [TABLE], [1], -1, ValueError, "least is -1"),
    ],
)
def test_a_wrong_operand_is_named(
    ids: Tensor, tables: list[Tensor], columns: list[int], least: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pool_bags(ids, tables, columns, [False] * len(tables), least)
