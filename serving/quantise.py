"""int8 in the place of float32: item rows, and linear layers with many rows to pass through them.

    rows       every table of item rows on the candidate side: values int8, one scale a row
    linears    of each plain block query-key-value, out and both of the feed-forward; of the interaction what projects
               crossed candidates and the hidden layers after the first

What these modules compute is the specification of int8, by plain operators: a fused int8 part is held to them. Heads,
norms, biases, attention and sums stay float32. `serving.fuse` packs what it finds, so quantise first.

Shapes: I item rows, C candidates, W width of a table, N outputs, K inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from foundation.blocks.plain import PlainBlock
from ranker.arches.interaction import Interaction
from serving.kernels.candidates.rows import quantise_table
from serving.kernels.linear.int8 import pack_int8, quantised_linear
from serving.kernels.linear.panels import pack
from serving.split import Halves, ItemRows

Kind = TypeVar("Kind", bound=nn.Module)

BLOCK_LINEARS = (
    "attention.project_in",
    "attention.project_out",
    "feed_forward.project_in",
    "feed_forward.project_out",
)


class QuantisedLinear(nn.Module):
    """`nn.Linear` in int8, see `serving.kernels.linear.int8`; without parameters.

    Args:
        linear: whose weights it takes.
    """

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed, scales = pack_int8(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`."""
        return quantised_linear(x, self.packed, self.scales, self.bias, self.out_features)


class QuantisedRows(nn.Module):
    """`ItemRows` in int8: `x = values * scale` with the row's largest magnitude at 127.

    Args:
        table: `[I, W]` float32.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        values, scales = quantise_table(table)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows `[C]` to `[C, W]`."""
        return self.values.index_select(0, rows) * self.scales.index_select(0, rows)[:, None]


def quantise_halves(halves: Halves, rows: bool = False, linears: bool = False) -> Halves:
    """A copy of both halves with int8 in it.

    Args:
        halves: as `serving.split` cuts them, in float32.
        rows: the tables of item rows.
        linears: the linear layers.

    Raises:
        ValueError: if a weight or a row has a NaN or an infinity.
    """
    halves = copy.deepcopy(halves)
    if rows:
        _swap(halves.candidate, ItemRows, lambda each: QuantisedRows(each.table))
    if linears:
        for half in (halves.profile, halves.candidate):
            for block in (module for module in half.modules() if isinstance(module, PlainBlock)):
                for name in BLOCK_LINEARS:
                    _quantise(block, name)
        interaction = halves.candidate.interaction
        if isinstance(interaction, Interaction):
            if interaction.crossing_projection is not None:
                _quantise(interaction, "crossing_projection")
            _swap(interaction.mlp, nn.Linear, QuantisedLinear)
    return halves


def packed_weights(linear: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """What an operator takes of a linear layer: packed weights, and in int8 their scales as well."""
    if isinstance(linear, QuantisedLinear):
        return linear.packed, [linear.scales]
    assert isinstance(linear, nn.Linear)
    return pack(linear.weight.detach()), []


def _swap(inside: nn.Module, kind: type[Kind], swapped: Callable[[Kind], nn.Module]) -> None:
    for name, module in list(inside.named_modules()):
        if isinstance(module, kind):
            inside.set_submodule(name, swapped(module))


def _quantise(owner: nn.Module, name: str) -> None:
    linear = owner.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    owner.set_submodule(name, QuantisedLinear(linear))
