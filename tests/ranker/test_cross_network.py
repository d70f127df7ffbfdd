"""The cross network: its formula, its start, and its place in the interaction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ranker.arches.cross_network import CrossNetwork, CrossSizes
from ranker.arches.interaction import Interaction, InteractionConfig, Widths

CONFIG = InteractionConfig(
    num_dots=3, dot_width=5, hidden_widths=(7, 4), cross_layers=2, cross_width=4, cross_rank=2
)


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@pytest.mark.parametrize("num_features", [0, 6])
def test_crosses_are_the_papers_formula(num_features: int) -> None:
    torch.manual_seed(0)
    network = CrossNetwork(CrossSizes(3, candidate_width=4, rank=2), 9, num_features + 3, out_width=7)
    stirred(network)
    candidate, dots = torch.randn(5, 9), torch.randn(5, 3)
    features = torch.randn(5, num_features) if num_features else None
    parts = [network.candidate_projection(candidate), features, dots]
    x = start = torch.cat([part for part in parts if part is not None], dim=1)
    for u, v, b in zip(network.layers.W_kernels, network.layers.V_kernels, network.layers.bias, strict=True):
        x = torch.stack([s * (u @ (v @ row) + b) + row for s, row in zip(start, x, strict=True)])
    torch.testing.assert_close(network(candidate, features, dots), x @ network.projection.weight.T)


def test_layers_start_as_the_identity_and_learn() -> None:
    torch.manual_seed(0)
    network = CrossNetwork(CrossSizes(2, candidate_width=4, rank=2), 9, 3, out_width=7)
    x = torch.randn(5, 7)
    assert torch.equal(network.layers(x), x)
    network(torch.randn(5, 9), None, torch.randn(5, 3)).square().sum().backward()
    assert all(kernel.grad is not None and kernel.grad.any() for kernel in network.layers.W_kernels)


def test_the_rank_is_cut_to_the_width() -> None:
    network = CrossNetwork(CrossSizes(1, candidate_width=2, rank=100), 9, 3, out_width=7)
    assert network.layers.V_kernels[0].shape == (5, 5)


def test_it_takes_the_place_of_the_dot_products_in_the_first_layer() -> None:
    torch.manual_seed(0)
    module = stirred(Interaction(CONFIG, Widths(6, 9, 2, 0), num_tasks=2))
    assert isinstance(module, Interaction)
    assert module.dot_weights is None
    assert module.cross is not None
    assert module.feature_projection is not None
    vector, candidate, features = torch.randn(2, 6), torch.randn(5, 9), torch.randn(5, 2)
    request = torch.tensor([0, 0, 1, 1, 1])
    queries = module.profile_dots(vector).view(2, 3, 5)[request]
    dots = torch.einsum("ce,cke->ck", module.candidate_dots(candidate), queries)
    hidden = module.candidate_projection(candidate) + module.feature_projection(features)
    hidden = hidden + module.profile_projection(vector)[request] + module.cross(candidate, features, dots)
    expected = module.heads(module.mlp(hidden.relu()))
    torch.testing.assert_close(module(vector, candidate, torch.tensor([0, 2, 5]), features), expected)


def test_every_parameter_of_it_gets_a_gradient_once_it_has_left_its_start() -> None:
    torch.manual_seed(0)
    module = stirred(Interaction(CONFIG, Widths(6, 9, 0, 0), num_tasks=2))
    module(torch.randn(2, 6), torch.randn(50, 9), torch.tensor([0, 20, 50])).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("field", "value"), [("cross_layers", -1), ("cross_width", 0), ("cross_rank", 0)])
def test_sizes_that_are_none_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"InteractionConfig.{field} is {value}; it must be at least"):
        InteractionConfig(**{field: value})
