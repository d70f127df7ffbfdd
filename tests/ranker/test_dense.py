"""Dense features: as they are, or through layers of their own on every side of the ranker."""

from __future__ import annotations

import pytest
import torch

from ranker.arches.dense import DenseArch
from ranker.model import RankerConfig


def test_without_layers_the_numbers_stay_as_they_are() -> None:
    arch, numbers = DenseArch(3), torch.randn(5, 3)
    assert arch.width == 3
    assert torch.equal(arch(numbers), numbers)
    assert not list(arch.parameters())


def test_layers_end_in_their_last_width() -> None:
    torch.manual_seed(0)
    arch, numbers = DenseArch(3, (7, 2)), torch.randn(5, 3)
    weight_1, bias_1, weight_2, bias_2 = arch.parameters()
    expected = (numbers @ weight_1.T + bias_1).relu() @ weight_2.T + bias_2
    assert arch.width == 2
    torch.testing.assert_close(arch(numbers), expected.relu())


def test_of_no_numbers_none_come_out() -> None:
    arch = DenseArch(0, (7, 2))
    assert arch.width == 0
    assert arch(torch.empty(5, 0)).shape == (5, 0)


def test_both_sides_of_a_ranker_take_the_layers(make_assembly, make_batch) -> None:
    assembly = make_assembly("decoder", dense_widths=(16, 12))
    model, batch = assembly.model, make_batch(assembly)
    vector = model.encode_profile(batch.profile).vector
    profile, candidate = model.profile_tower, model.candidate_tower
    torch.testing.assert_close(vector[:, -12:], profile.dense(batch.profile.dense))
    rows = batch.candidates.item_rows
    vectors = candidate(rows, model.candidate_vectors(rows, model.item_vectors()))
    torch.testing.assert_close(vectors[:, -12:], candidate.dense(candidate.item_dense[rows]))
    model(batch).sum().backward()
    for tower in (profile, candidate):
        assert all(parameter.grad.any() for parameter in tower.dense.parameters())


def test_a_width_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RankerConfig.dense_widths is \(8, 0\); widths must be positive"):
        RankerConfig(dense_widths=(8, 0))
