"""Sparse features: pooling of absent and present ids, and the exportable twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foundation.errors import DataError
from ranker.arches.sparse import PaddedSparseArch, SparseArch, table_name
from ranker.features.columns import SparseColumn, SparseField, place, total_columns

# "type" is also a method of every module: a user's column may have that name.
FIELDS = (
    SparseField("type", 3, 6, "mean"),
    SparseField("context", 2, 6, "sum"),
    SparseField("item_id", 1, 6, of_items=True),
)
COLUMNS = place(FIELDS, dim=4, item_dim=8)
IDS = arrays(np.int64, st.tuples(st.integers(1, 5), st.just(6)), elements=st.integers(-1, 5))


def small_arch() -> SparseArch:
    torch.manual_seed(0)
    return SparseArch(COLUMNS)


def table_of(arch: SparseArch, column: SparseColumn) -> torch.Tensor:
    return arch.get_parameter(f"bags.embedding_bags.{table_name(column)}.weight")


def pooled_by_hand(arch: SparseArch, ids: np.ndarray) -> torch.Tensor:
    rows = []
    for row in ids:
        parts = []
        for column in COLUMNS:
            table = table_of(arch, column)
            present = [int(id_) for id_ in row[column.first : column.first + column.num_columns] if id_ >= 0]
            total = sum((table[id_] for id_ in present), torch.zeros(column.dim))
            parts.append(
                total / max(1, len(present)) if column.pooling == "mean" else total + torch.zeros(column.dim)
            )
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_fields_lie_side_by_side() -> None:
    assert [(column.first, column.num_columns, column.dim) for column in COLUMNS] == [
        (0, 3, 4),
        (3, 2, 4),
        (5, 1, 8),
    ]
    assert total_columns(COLUMNS) == total_columns(FIELDS) == 6


@settings(deadline=None)
@given(IDS)
def test_bags_pool_the_ids_that_are_there(ids: np.ndarray) -> None:
    arch = small_arch()
    torch.testing.assert_close(arch(torch.from_numpy(ids)), pooled_by_hand(arch, ids))


@settings(deadline=None)
@given(IDS)
def test_padded_twin_gives_the_same_values(ids: np.ndarray) -> None:
    arch = small_arch()
    twin = PaddedSparseArch.from_sparse(arch)
    assert twin.columns == arch.columns
    torch.testing.assert_close(twin(torch.from_numpy(ids)), arch(torch.from_numpy(ids)), rtol=1e-6, atol=1e-7)


def test_twin_keeps_its_weights_when_the_original_trains_on() -> None:
    arch = small_arch()
    twin = PaddedSparseArch.from_sparse(arch)
    ids = torch.zeros(1, 6, dtype=torch.int64) + 3
    before = twin(ids).detach().clone()
    with torch.no_grad():
        for parameter in arch.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin(ids), before)
    assert not torch.allclose(arch(ids), before)


def test_out_of_vocabulary_and_absent_say_nothing_at_first() -> None:
    arch = small_arch()
    assert not arch(torch.zeros(2, 6, dtype=torch.int64)).any()
    assert not arch(torch.full((2, 6), -1)).any()
    assert (arch(torch.full((2, 6), 2)) != 0).all()


def test_only_looked_up_rows_get_gradients() -> None:
    arch = small_arch()
    arch(torch.tensor([[2, 4, -1, -1, -1, 5]])).sum().backward()
    gradients = {column.name: table_of(arch, column).grad for column in COLUMNS}
    touched = {
        name: gradient.any(dim=1).nonzero().flatten().tolist()
        for name, gradient in gradients.items()
        if gradient is not None
    }
    assert touched == {"type": [2, 4], "context": [], "item_id": [5]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 6}, "dim is 6; .* multiple of 4"),
        ({"num_rows": 0}, "0 rows"),
        ({"num_columns": 0}, "0 columns"),
        ({"pooling": "max"}, "pooling is 'max'"),
    ],
)
def test_column_refuses_what_fbgemm_cannot_hold(changes: dict, message: str) -> None:
    values = {"name": "x", "first": 0, "num_columns": 1, "pooling": "sum", "num_rows": 2, "dim": 4}
    with pytest.raises(ValueError, match=message):
        SparseColumn(**{**values, **changes})


def test_arch_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match="columns is empty"):
        SparseArch(())


def test_two_features_of_one_name_are_refused_by_name() -> None:
    fields = (SparseField("request_context", 2, 9, "sum"), SparseField("request_context", 1, 5))
    with pytest.raises(
        DataError, match=r"schema\.toml: feature 'request_context': the ranker has an embedding"
    ):
        place(fields, 4, 8)
