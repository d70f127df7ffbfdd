"""The layout leads from packed to dense and back, whatever the lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.layout import layout

ragged_lengths = st.lists(st.integers(0, 9), max_size=12)


@given(ragged_lengths)
def test_every_token_lies_in_its_own_cell(lengths):
    batch = layout(torch.tensor(lengths, dtype=torch.int64))
    tokens = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    longest = max(lengths, default=0)

    assert batch.dense_index.shape == (len(lengths), longest)
    assert batch.packed_index.tolist() == [row * longest + position for row, position in tokens]
    assert batch.positions.tolist() == [position for _, position in tokens]
    assert [int(batch.dense_index[cell]) for cell in tokens] == list(range(len(tokens)))
    assert all(index.dtype == torch.int64 for index in batch)


@given(ragged_lengths)
def test_padding_points_at_row_zero(lengths):
    batch = layout(torch.tensor(lengths, dtype=torch.int64))
    is_padding = np.arange(batch.dense_index.shape[1]) >= np.array(lengths, dtype=int)[:, None]
    assert not batch.dense_index.numpy()[is_padding].any()


@given(ragged_lengths)
def test_to_dense_and_back_changes_nothing(lengths):
    batch = layout(torch.tensor(lengths, dtype=torch.int64))
    packed = torch.arange(sum(lengths)) + 100
    assert torch.equal(packed[batch.dense_index].flatten()[batch.packed_index], packed)


@given(ragged_lengths)
def test_last_index_is_the_end_of_each_sequence_that_has_one(lengths):
    batch = layout(torch.tensor(lengths, dtype=torch.int64))
    ends = np.cumsum(lengths, dtype=int) - 1
    assert batch.last_index.tolist() == [int(end) if n else 0 for end, n in zip(ends, lengths, strict=True)]


@given(ragged_lengths)
def test_lengths_come_back(lengths):
    batch = layout(torch.tensor(lengths, dtype=torch.int64))
    assert batch.lengths.tolist() == lengths


def test_int32_lengths_are_as_good():
    for narrow, wide in zip(
        layout(torch.tensor([2, 0, 3], dtype=torch.int32)), layout(torch.tensor([2, 0, 3])), strict=True
    ):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize("lengths", [torch.tensor([1.0]), torch.tensor([[1]]), torch.tensor([2, -1])])
def test_lengths_that_are_no_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be"):
        layout(lengths)
