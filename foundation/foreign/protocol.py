"""What a foreign decoder has to be: tokens in, hidden states, keys and values out.

Shapes: B sequences, S longest sequence, N branches of a sequence, L layers, D model width, H key heads, K head width.

A package offers one as an entry point of the group `marquee.decoders`: a function from settings (a dict, as read from
JSON), width and number of layers to a `ForeignDecoder` of these sizes. `foundation.foreign.hugging_face` is a worked
example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class LayerMemory(NamedTuple):
    """Keys and values of one layer, as the decoder itself wants them back."""

    keys_BHSK: Tensor
    values_BHSK: Tensor


class ForeignPass(NamedTuple):
    """What one pass over whole sequences yields."""

    hidden: tuple[Tensor, ...]
    """L times `[B, S, D]`: after each layer; the last are the decoder's output, under its final norm."""
    memory: tuple[LayerMemory, ...]
    """L of them."""


class ForeignDecoder(nn.Module, ABC):
    """A causal decoder over dense batches whose sequences are padded on the right.

    Attributes:
        width: D.
        num_layers: L.
        max_positions: how many positions it knows; None: any number.
    """

    width: int
    num_layers: int
    max_positions: int | None = None

    @abstractmethod
    def forward(self, tokens_BSD: Tensor) -> ForeignPass:
        """Read sequences from their first token on, at positions 0, 1, ...; a token sees itself and those before it.

        What is returned at padding is never read. It must be possible to export with B and S dynamic.
        """

    @abstractmethod
    def branch(self, tokens_BND: Tensor, memory: tuple[LayerMemory, ...], lengths_B: Tensor) -> Tensor:
        """Output `[B, N, D]` of tokens that each continue their sequence on their own.

        Each sits at position `lengths_B` (int64, from 1 on) of its sequence and sees the tokens before it there, and
        itself, but none of the other branches, and no padding. Needed by crossing alone.
        """
