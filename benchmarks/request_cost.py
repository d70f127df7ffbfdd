"""What one request costs at the least, whole and cut: operations that are counted, bytes that must be read.

Shapes: C candidates of a request, T tokens of its history, F facet columns, D decoder width.
"""

from __future__ import annotations

from torch import nn

from benchmarks.ceiling import Work, count_flops, tensor_bytes
from benchmarks.in_process import EagerRanker

_FLOAT_BYTES = 4


def split_cost(ranker: EagerRanker, number: int) -> Work:
    """Request `number` with its profile encoded once."""
    return Work(count_flops(lambda: ranker.split(number)) / 1e9, _bytes(ranker, number, histories=1) / 1e6)


def unsplit_cost(ranker: EagerRanker, number: int) -> Work:
    """Request `number` with its history encoded once per candidate."""
    copies = len(ranker.candidates[number])
    return Work(
        count_flops(lambda: ranker.unsplit(number)) / 1e9, _bytes(ranker, number, histories=copies) / 1e6
    )


def _bytes(ranker: EagerRanker, number: int, histories: int) -> int:
    """Weights of all layers once, token rows of every copy of the history, and rows of the candidates."""
    profile, candidates, _ = ranker.inputs(number)
    layers = [layer for layer in ranker.model.modules() if isinstance(layer, nn.Linear | nn.LayerNorm)]
    weights = tensor_bytes([weight for layer in layers for weight in layer.parameters(recurse=False)])
    token_rows = profile.facet_ids.numel() + profile.item_ids.numel()
    token_floats = (
        histories * token_rows * (0 if ranker.item_vectors is None else ranker.item_vectors.vectors.shape[1])
    )
    candidate_floats = len(candidates.item_rows) * ranker.model.candidate_tower.width
    return weights + _FLOAT_BYTES * (token_floats + candidate_floats)
