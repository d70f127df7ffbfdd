"""Crossing: candidates as tokens of the decoder, each read right after its request's own token.

Shapes: C candidates over the batch, B requests, T packed tokens, D decoder width, L layers, m of them crossed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.branches import Branches, branches
from foundation.decoder import Decoder
from foundation.errors import DataError
from foundation.foreign.packed import PackedForeign
from foundation.item_tower import INITIAL_STD
from foundation.key_values import KeyValues, LayerKeyValues
from foundation.model import FoundationModel


class CandidateToken(nn.Module):
    """`W · item vector + type embedding`: what a candidate is below the decoder's top layers; `W` starts as identity.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.projection.weight)
        self.type_embedding = nn.Parameter(torch.empty(width).normal_(std=INITIAL_STD))

    def forward(self, item_vectors: Tensor) -> Tensor:
        """`[C, D]` to `[C, D]`; depends on the item alone."""
        return self.projection(item_vectors) + self.type_embedding


class Crossing(nn.Module):
    """Candidates through the top m layers of a decoder, each seeing its request's tokens and itself.

    The decoder is the profile tower's own, and passed in: its layers have one set of weights for both.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token: nn.Module = CandidateToken(width)  # serving swaps it

    def forward(
        self,
        candidate: Tensor,
        decoder: Decoder | PackedForeign,
        where: Branches,
        stored: tuple[LayerKeyValues, ...],
    ) -> Tensor:
        """Crossed candidates `[C, D]`, under the decoder's final norm.

        Args:
            candidate: `[C, D]` item vectors; what `token` reads.
            decoder: whose top layers they pass through.
            where: from `crossing_layout`.
            stored: the requests' keys and values of the top m layers.
        """
        return decoder.branch(self.token(candidate), where, stored)


def crossing_layout(stored: KeyValues, candidate_offsets: Tensor) -> Branches:
    """Where candidates lie beside their requests' tokens; ahead of the model, since its shapes depend on data."""
    return branches(stored.offsets, candidate_offsets)


def check_crossing(num_layers: int, foundation: FoundationModel | None) -> None:
    """Whether candidates can pass through `num_layers` of a decoder.

    Raises:
        DataError: naming `RankerConfig.crossing_layers`, its value and what would be right.
    """
    start = f"RankerConfig.crossing_layers is {num_layers}; "
    if num_layers == 0:
        return
    if foundation is None:
        raise DataError(f"{start}the pooled tower has no decoder to cross: it must be 0")
    decoder = foundation.config.decoder
    if foundation.config.foreign.adapter:
        if num_layers != decoder.num_layers:
            raise DataError(f"{start}through a foreign decoder it is 0 or all {decoder.num_layers} layers")
    elif decoder.block == "hstu":
        raise DataError(
            f"{start}the release's blocks are \"hstu\", which candidates can't cross: it must be 0"
        )
    elif num_layers > decoder.num_layers:
        raise DataError(f"{start}the release's decoder has {decoder.num_layers} layers, at most so many")
