"""Exported programs on disk: the graph in one file without weights, the weights beside it as safetensors.

`torch.export.save` puts a program's weights into its archive. Here a program takes its weights as inputs, so
the archive holds a graph in JSON; and it is saved without sample inputs, the one part that torch would pickle.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram

Program = Callable[..., tuple[Tensor, ...]]
"""A loaded program with its weights: a function of its inputs."""
Shapes = tuple[dict[int, Any], ...]
"""For each input its dynamic dimensions, as `torch.export.export` takes them."""

_WEIGHT_INPUT = "weights_"
"""How torch.export names the weights among a program's inputs: by the argument of `_WithWeights.forward`."""


class _WithWeights(nn.Module):
    """A module whose parameters and buffers are its first inputs, in the order of their names."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        # A plain attribute: registered as a submodule its weights would become part of the program.
        self.call = lambda weights, inputs: torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), inputs
        )

    def forward(self, weights: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.call(weights, inputs)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, detached, in the order in which a program takes them."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: named[name].detach().contiguous() for name in sorted(named)}


@torch.no_grad()
def export_program(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Shapes) -> ExportedProgram:
    """Trace a module in evaluation mode into a program of (weights, inputs).

    Args:
        module: takes tensors by position and returns a tuple of them.
        inputs: an example; every dynamic size in it should be at least 2 and different from the others.
        shapes: dynamic dimensions of each input.
    """
    assert not module.training, type(module)
    weights = weights_of(module)
    wrapped = _WithWeights(module, tuple(weights))
    static = tuple(None for _ in weights)
    program = torch.export.export(
        wrapped, (tuple(weights.values()), inputs), dynamic_shapes=(static, shapes), strict=False
    )
    program.example_inputs = None
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        # Where on the exporting machine a node's line of source lies is nobody's business but its own.
        node.meta.pop("stack_trace", None)
    return program


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program and make sure that nothing in the archive is pickled or a weight.

    Raises:
        ValueError: if something is; it names the archive's member.
    """
    torch.export.save(program, path)
    for problem in unwanted_members(path):
        raise ValueError(f"{path}: {problem}; a program is saved without weights, sample inputs and pickles")


def unwanted_members(path: Path) -> list[str]:
    """What of a saved program is a weight, a sample input or pickled."""
    unwanted: list[str] = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.split("/", 1)[1]
            if name.endswith("_config.json"):
                tensors = json.loads(archive.read(member))["config"]
                unwanted += [f"{key} is pickled" for key, tensor in tensors.items() if tensor["use_pickle"]]
            elif name.startswith(("data/weights/", "data/sample_inputs/")) and member.file_size:
                unwanted.append(f"{name} holds {member.file_size} bytes")
    return unwanted


def load_weights(path: Path) -> dict[str, Tensor]:
    """A program's weights by name, each from the start of a cache line on.

    The file packs tensors without gaps, so that of the tensors mapped from it most start within a line; kernels then
    load two lines for each vector, which made them 13 % slower.
    """
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def load_program(path: Path, weights: Mapping[str, Tensor]) -> Program:
    """A function of the program's inputs, with `weights` (by name) bound to it.

    The graph runs as it was traced, one ATen operator after another, without a check of its inputs: requests
    are validated before.

    Raises:
        ValueError: if the program and the weights don't fit each other.
    """
    program = torch.export.load(path)
    run = program.graph_module.forward
    signature, placeholders = program.graph_signature, program.graph.find_nodes(op="placeholder")
    num_weights = sum(node.name.startswith(_WEIGHT_INPUT) for node in placeholders)
    if num_weights != len(weights):
        raise ValueError(f"{path}: takes {num_weights} weights; there are {len(weights)}")
    bound: list[Any] = [
        program.constants[name] for name in signature.inputs_to_lifted_tensor_constants.values()
    ]
    bound += [weights[name] for name in sorted(weights)]
    for node, tensor in zip(placeholders, bound, strict=False):
        expected, found = list(node.meta["val"].shape), list(tensor.shape)
        if expected != found:
            raise ValueError(f"{path}: input {node.name} has shape {expected}; its weight has {found}")

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(run(*bound, *inputs))

    return call
