"""Which parts of both halves become int8, how near they stay, and that what was given stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ranker.artifact import load_ranker
from serving.kernels.linear.int8 import WEIGHT_MAX
from serving.quantise import QuantisedLinear, QuantisedRows, quantise_halves
from serving.split import Halves, ItemRows, split


@pytest.fixture(scope="module")
def halves(ranker_folder: Callable[[str], Path]) -> Halves:
    return split(load_ranker(ranker_folder("crossing")).model)


def _names(halves: Halves, kind: type[nn.Module]) -> set[str]:
    both = nn.ModuleDict({"profile": halves.profile, "candidate": halves.candidate})
    return {name for name, module in both.named_modules() if isinstance(module, kind)}


def test_rows_are_quantised_where_they_are_asked_for(halves: Halves) -> None:
    tables = _names(halves, ItemRows)
    quantised = quantise_halves(halves, rows=True)
    assert tables and _names(quantised, QuantisedRows) == tables
    assert not _names(quantised, ItemRows) and not _names(quantised, QuantisedLinear)
    for name in tables:
        table = halves.candidate.get_submodule(name.removeprefix("candidate.")).table
        rows = quantised.candidate.get_submodule(name.removeprefix("candidate."))
        assert isinstance(table, torch.Tensor) and isinstance(rows, QuantisedRows)
        half_a_step = table.abs().amax(1, keepdim=True) / 127 / 2
        assert bool(((rows(torch.arange(len(table))) - table).abs() <= half_a_step * 1.001).all())


def test_linear_layers_of_blocks_crossing_and_hidden_layers_alone(halves: Halves) -> None:
    quantised = quantise_halves(halves, linears=True)
    found = _names(quantised, QuantisedLinear)
    blocks = {name.rsplit(".", 2)[0] for name in found if ".blocks." in name}
    assert any(name.startswith("profile.") for name in blocks)
    assert any(name.startswith("candidate.crossed.") for name in blocks)
    of_blocks = {
        f"{block}.{part}.project_{side}"
        for block in blocks
        for part in ("attention", "feed_forward")
        for side in ("in", "out")
    }
    mlp = {name for name in _names(halves, nn.Linear) if name.startswith("candidate.interaction.mlp.")}
    assert mlp and found == of_blocks | mlp | {"candidate.interaction.crossing_projection"}
    assert _names(quantised, nn.Linear) == _names(halves, nn.Linear) - found
    assert _names(quantised, ItemRows) == _names(halves, ItemRows)


def test_what_was_given_stays_float32(halves: Halves) -> None:
    before = {name: tensor.clone() for half in halves for name, tensor in half.state_dict().items()}
    quantise_halves(halves, rows=True, linears=True)
    after = {name: tensor for half in halves for name, tensor in half.state_dict().items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not _names(halves, QuantisedLinear) and not _names(halves, QuantisedRows)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_whose_values_are_whole_numbers_is_exact(bias: bool) -> None:
    linear = nn.Linear(10, 6, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-WEIGHT_MAX, WEIGHT_MAX + 1, (6, 10)))
        linear.weight[:, 0] = WEIGHT_MAX
    x = torch.randint(-127, 128, (2, 5, 10)).float()
    x[..., 1] = 127
    torch.testing.assert_close(QuantisedLinear(linear)(x), linear(x), rtol=1e-6, atol=1e-3)


def test_a_weight_that_is_not_finite_is_an_error(halves: Halves) -> None:
    spoiled = quantise_halves(halves)
    mlp = spoiled.candidate.get_submodule("interaction.mlp")
    linear = next(module for module in mlp.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        linear.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or an infinity"):
        quantise_halves(spoiled, linears=True)
