"""`marquee::pool_bags`, `embed_tokens` and `profile_vector` against the plain operators that they take the place of."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from foundation.layout import layout
from ranker.arches.sparse import PaddedSparseArch
from ranker.features.columns import SparseColumn
from serving.fused_bags import FusedBags, FusedFacets
from serving.kernels.bags.ops import embed_tokens, pool_bags, profile_vector


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
    dense = torch.arange(rows * 2.0).view(rows, 2)
    beside = FusedBags.from_sparse(sparse).beside(ids, dense)
    torch.testing.assert_close(beside, torch.cat((sparse(ids), dense), dim=1), rtol=1e-6, atol=1e-6)


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
        (
            torch.tensor([[0, 3]]),
            [TABLE],
            [2],
            0,
            ValueError,
            r"pool_bags: ids\[0, 1\] is 3; the table has 3 rows",
        ),
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


@settings(max_examples=20, deadline=None, derandomize=True)
@given(tokens=st.integers(0, 300), width=st.sampled_from((1, 8, 36, 256)), facets=st.integers(1, 5))
def test_tokens_are_their_facets_and_their_item(tokens: int, width: int, facets: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    table, items = torch.randn(9, width, generator=random), torch.randn(4, width, generator=random)
    table[0] = float("nan")  # padding is never read
    ids = torch.randint(0, 9, (tokens, facets), generator=random)
    item_ids = torch.randint(0, 4, (tokens,), generator=random)
    expected = torch.zeros(tokens, width)
    for column in ids.unbind(1):
        expected += torch.where((column > 0)[:, None], table.nan_to_num(0.0)[column], 0.0)
    lengths = [tokens - tokens // 3, tokens // 3] if tokens >= 3 else [tokens] * (tokens > 0)
    where = layout(torch.tensor(lengths, dtype=torch.int64))
    found, offsets = embed_tokens(ids, table, item_ids, items, where.last_index, where.positions)
    assert offsets.tolist() == [0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()]
    torch.testing.assert_close(found, expected + items[item_ids], rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(requests=st.integers(0, 4), width=st.sampled_from((1, 5, 256)), dense=st.integers(0, 3))
def test_a_profile_vector_is_unit_pooled_and_dense(requests: int, width: int, dense: int) -> None:
    random = torch.Generator().manual_seed(requests)
    sparse = _sparse(1)
    ids, fused = _ids(requests, 2, sparse), FusedBags.from_sparse(sparse)
    hidden = torch.randn(requests, width, generator=random) * 100
    hidden[:1] = 1e-6  # shorter than the least length
    features = torch.randn(requests, dense, generator=random)
    unit = torch.nn.functional.normalize(hidden, dim=-1, eps=1e-4)
    found = fused.profile_vector(hidden, 1e-4, ids, features)
    torch.testing.assert_close(found, torch.cat((unit, sparse(ids), features), dim=1), rtol=1e-6, atol=1e-6)


def test_a_profile_vector_without_id_columns() -> None:
    hidden, dense = torch.tensor([[3.0, 4.0]]), torch.tensor([[7.0]])
    found = profile_vector(hidden, 1e-4, torch.zeros(1, 0, dtype=torch.int64), [], [], [], dense)
    assert torch.equal(found, torch.tensor([[0.6, 0.8, 7.0]]))


def test_they_keep_the_rules_of_an_operator_too() -> None:
    ids, table = torch.tensor([[0, 2], [1, 0]]), torch.randn(3, 5)
    torch.library.opcheck(
        torch.ops.marquee.embed_tokens.default,
        (ids, table, torch.tensor([1, 0]), torch.randn(2, 5), torch.tensor([0, 1]), torch.zeros(2).long()),
    )
    torch.library.opcheck(
        torch.ops.marquee.profile_vector.default,
        (torch.randn(2, 4), 1e-4, ids, [table], [2], [True], torch.randn(2, 1)),
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"last_index": torch.zeros(1, 1).long()}, ValueError, r"last_index has shape \[1, 1\]"),
        (
            {"last_index": torch.tensor([0, 1])},
            ValueError,
            r"last_index\[1\] is 1; request 1 has no token at 1",
        ),
        ({"last_index": torch.tensor([1, 0])}, ValueError, r"last_index\[1\] is 0"),
        ({"last_index": torch.tensor([7])}, ValueError, r"last_index\[0\] is 7"),
        ({"last_index": torch.tensor([0])}, ValueError, "the last of last_index is 0; there are 2 tokens"),
        ({"facets": torch.zeros(3, 5).double()}, TypeError, r"embed_tokens: tables\[0\] is Double"),
        ({"item_ids": torch.tensor([0, 4])}, ValueError, r"item_ids\[1\] is 4; there are 4 items"),
        ({"item_ids": torch.tensor([-1, 0])}, ValueError, r"item_ids\[0\] is -1"),
        ({"item_ids": torch.tensor([0])}, ValueError, r"item_ids has shape \[1\]"),
        ({"item_ids": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "item_ids is Int"),
        ({"items": torch.zeros(4, 3)}, ValueError, r"items has shape \[4, 3\]; it must be \[I, 5\]"),
        ({"items": torch.zeros(4, 5).double()}, TypeError, "items is Double"),
        (
            {"facet_ids": torch.tensor([[0, 3], [0, 0]])},
            ValueError,
            r"ids\[0, 1\] is 3; the table has 3 rows",
        ),
    ],
)
def test_tokens_that_are_wrong_are_named(
    change: dict[str, Tensor], kind: type[Exception], message: str
) -> None:
    right = {
        "facet_ids": torch.tensor([[0, 2], [1, 0]]),
        "facets": torch.zeros(3, 5),
        "item_ids": torch.tensor([1, 0]),
        "items": torch.zeros(4, 5),
        "last_index": torch.tensor([1]),
        "positions": torch.tensor([0, 1]),
    }
    with pytest.raises(kind, match=message):
        embed_tokens(**(right | change))


@pytest.mark.parametrize(
    ("hidden", "dense", "kind", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 1), ValueError, r"hidden has shape \[3, 4\]"),
        (torch.zeros(2, 4), torch.zeros(2), ValueError, r"dense has shape \[2\]"),
        (torch.zeros(2, 4), torch.zeros(2, 1).half(), TypeError, "dense is Half"),
        (torch.zeros(4, 2).t(), torch.zeros(2, 1), ValueError, "hidden has shape"),
    ],
)
def test_a_profile_vector_that_is_wrong_is_named(
    hidden: Tensor, dense: Tensor, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        profile_vector(
            hidden, 1e-4, torch.zeros(2, 1, dtype=torch.int64), [torch.zeros(1, 3)], [1], [False], dense
        )
