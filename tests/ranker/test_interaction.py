"""The interaction: exact algebra, jagged requests, the swap of its first layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranker.arches.heads import TaskHeads
from ranker.arches.interaction import (
    Interaction,
    InteractionConfig,
    Widths,
    dot_products,
    interaction_first_layer,
    request_of_candidate,
)

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
CONFIG = InteractionConfig(num_dots=3, dot_width=5, hidden_widths=(7, 4))


def offsets_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=dtype)


@given(LENGTHS, st.sampled_from([torch.int32, torch.int64]))
def test_request_of_candidate_counts_out_the_lengths(lengths: list[int], dtype: torch.dtype) -> None:
    expected = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    found = request_of_candidate(offsets_of(lengths, dtype), sum(lengths))
    assert torch.equal(found, expected)


@given(LENGTHS, st.sampled_from([torch.int32, torch.int64]), st.integers(0, 99))
def test_first_layer_is_its_formula_candidate_by_candidate(
    lengths: list[int], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    num_requests, num_candidates, h, e, k = len(lengths), sum(lengths), 7, 5, 3
    x, side = torch.randn(num_candidates, h), torch.randn(num_candidates, e)
    p, q, w = torch.randn(num_requests, h), torch.randn(num_requests, k, e), torch.randn(k, h)
    found = interaction_first_layer(x, side, p, q, w, offsets_of(lengths, dtype))
    assert found.shape == (num_candidates, h)
    candidate = 0
    for request, length in enumerate(lengths):
        for _ in range(length):
            dots = q[request] @ side[candidate]
            expected = torch.relu(x[candidate] + p[request] + dots @ w)
            torch.testing.assert_close(found[candidate], expected)
            candidate += 1


def test_decomposed_first_layer_is_one_linear_layer_over_everything() -> None:
    torch.manual_seed(0)
    module = Interaction(CONFIG, Widths(6, 9, 0, 0), num_tasks=2)
    vector, candidate, offsets = torch.randn(2, 6), torch.randn(5, 9), torch.tensor([0, 2, 5])
    profile = vector[torch.tensor([0, 0, 1, 1, 1])]
    side = module.candidate_dots(candidate)
    dots = torch.einsum("ce,cke->ck", side, module.profile_dots(profile).view(5, 3, 5))
    assert module.dot_weights is not None
    weight = torch.cat(
        [module.profile_projection.weight, module.candidate_projection.weight, module.dot_weights.T], dim=1
    )
    hidden = nn.functional.linear(
        torch.cat([profile, candidate, dots], dim=1), weight, module.candidate_projection.bias
    ).relu()
    expected = module.heads(module.mlp(hidden))
    torch.testing.assert_close(module(vector, candidate, offsets), expected)


def test_shared_space_start_makes_dot_product_zero_the_scaled_dot_product() -> None:
    torch.manual_seed(0)
    module = Interaction(CONFIG, Widths(6, 9, 0, 0), num_tasks=1)
    module.start_from_shared_space(width=4, scale=20.0)
    vector, candidate = torch.randn(1, 6), torch.randn(8, 9)
    query = module.profile_dots(vector).view(3, 5)[0]
    torch.testing.assert_close(
        module.candidate_dots(candidate) @ query, 20.0 * candidate[:, :4] @ vector[0, :4]
    )


def test_shared_space_wider_than_the_dot_products_is_refused() -> None:
    module = Interaction(CONFIG, Widths(8, 9, 0, 0), num_tasks=1)
    with pytest.raises(ValueError, match=r"dot_width is 5; .* decoder's width needs at least 6"):
        module.start_from_shared_space(width=6, scale=1.0)


def test_first_layer_swaps_without_touching_the_checkpoint() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return interaction_first_layer(*args)

    torch.manual_seed(0)
    module = Interaction(CONFIG, Widths(6, 9, 0, 0), num_tasks=2)
    inputs = torch.randn(2, 6), torch.randn(5, 9), torch.tensor([0, 2, 5])
    before, keys = module(*inputs), list(module.state_dict())
    counting = Counting()
    module.first_layer = counting
    assert torch.equal(module(*inputs), before)
    assert counting.calls == 1
    assert list(module.state_dict()) == keys


def test_dot_products_are_of_each_candidate_with_its_own_request() -> None:
    torch.manual_seed(0)
    e, q = torch.randn(5, 4), torch.randn(3, 2, 4)
    found = dot_products(e, q, torch.tensor([0, 2, 2, 5]))
    expected = torch.stack([q[request] @ e[c] for c, request in enumerate([0, 0, 2, 2, 2])])
    torch.testing.assert_close(found, expected)


def test_heads_of_their_own_let_a_task_learn_without_the_other() -> None:
    torch.manual_seed(0)
    config = InteractionConfig(num_dots=3, dot_width=5, hidden_widths=(7, 4), head_widths=(6, 5))
    module = Interaction(config, Widths(6, 9, 0, 0), num_tasks=2)
    logits = module(torch.randn(2, 6), torch.randn(5, 9), torch.tensor([0, 2, 5]))
    assert logits.shape == (5, 2)
    logits[:, 1].sum().backward()
    assert isinstance(module.heads, TaskHeads)
    first, second = (list(tower.parameters()) for tower in module.heads.towers)
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in first)
    assert all(parameter.grad is not None for parameter in second)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_widths", (4, 0)),
        ("num_dots", 0),
        ("dot_width", 0),
        ("hidden_widths", ()),
        ("hidden_widths", (8, 0)),
    ],
)
def test_config_names_the_field_that_is_wrong(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"InteractionConfig.{field} is "):
        InteractionConfig(**{field: value})
