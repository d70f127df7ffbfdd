"""The causal decoder: pre-norm blocks of attention and feed-forward, then a final norm.

Shapes: T packed tokens, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from foundation.attention import CausalSelfAttention, Rotation, rotation
from foundation.layout import Layout

FEED_FORWARD_MULTIPLE = 4


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder.

    Raises:
        ValueError: if a field is out of range; it names the field, its value and what would be right.
    """

    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for field in ("width", "num_layers", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"decoder.{field} must be >= 1, got {getattr(self, field)}")
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"decoder.width must be a multiple of 2 * num_heads = {2 * self.num_heads} "
                f"(rotary positions turn pairs within a head), got {self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"decoder.dropout must be in [0, 1), got {self.dropout}")

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, hidden width 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, FEED_FORWARD_MULTIPLE * width)
        self.activation = nn.GELU()
        self.project_out = nn.Linear(FEED_FORWARD_MULTIPLE * width, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        """`[T, D]` to `[T, D]`."""
        return self.project_out(self.activation(self.project_in(x_TD)))


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)), each with dropout on what it adds."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = CausalSelfAttention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TD: Tensor, angles: Rotation, layout: Layout) -> Tensor:
        """`[T, D]` to `[T, D]`."""
        x_TD = x_TD + self.dropout(self.attention(self.attention_norm(x_TD), angles, layout))
        return x_TD + self.dropout(self.feed_forward(self.feed_forward_norm(x_TD)))


class Decoder(nn.Module):
    """A stack of blocks over packed sequences, and a final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of standard deviation 0.02; what a block adds starts 1 / sqrt(2 * layers) smaller (GPT-2)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                shrink = math.sqrt(2 * len(self.blocks)) if name.endswith("project_out") else 1.0
                nn.init.normal_(module.weight, std=0.02 / shrink)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Hidden states `[T, D]`, normed, of input tokens `[T, D]`."""
        angles = rotation(layout.positions, self.head_width)
        x_TD = self.dropout(x_TD)
        for block in self.blocks:
            x_TD = block(x_TD, angles, layout)
        return self.final_norm(x_TD)
