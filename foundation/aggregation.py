"""From the hidden states of all layers to one causal representation of each token's history.

Shapes: T packed tokens, D model width, L layers, R recent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from foundation.layout import Layout

Pool = Literal["last", "mean", "attention"]
Layers = Literal["last", "mix"]


@dataclass(frozen=True)
class AggregationConfig:
    """What a token's representation is made of.

    Args:
        tokens: "last" (the token alone), "mean" of the newest, or "attention" over them.
        num_recent: R, how many tokens count as the newest, the token itself among them.
        layers: "last" (the decoder's output), or "mix" (a learned average over the layers).

    Raises:
        ValueError: if a field is out of range; it names the field, its value and what would be right.
    """

    tokens: Pool = "last"
    num_recent: int = 8
    layers: Layers = "last"

    def __post_init__(self) -> None:
        if self.tokens not in get_args(Pool):
            raise ValueError(f"aggregation.tokens must be one of {get_args(Pool)}, got {self.tokens!r}")
        if self.layers not in get_args(Layers):
            raise ValueError(f"aggregation.layers must be one of {get_args(Layers)}, got {self.layers!r}")
        if self.num_recent < 1:
            raise ValueError(f"aggregation.num_recent must be >= 1, got {self.num_recent}")


class LayerMix(nn.Module):
    """sum_l softmax(w)_l h_l, at first the mean (the scalar mix of ELMo, arXiv 1802.05365)."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """L times `[T, D]` to `[T, D]`."""
        shares = self.weights.softmax(0).unbind()
        mixed = layers[0] * shares[0]
        for share, hidden in zip(shares[1:], layers[1:], strict=True):
            mixed = mixed + share * hidden
        return mixed


class RecentAttention(nn.Module):
    """softmax over the R newest tokens of (W h_t)·h_s / sqrt(D) + b_{t - s}, of h_s; at first their mean."""

    def __init__(self, width: int, num_recent: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(num_recent))
        nn.init.zeros_(self.query.weight)

    def forward(self, hidden_TD: Tensor, recent_TR: Tensor, is_token_TR: Tensor) -> Tensor:
        """`[T, D]` to `[T, D]`; `recent_TR` are rows of `hidden_TD`."""
        recent = list(zip(recent_TR.unbind(1), is_token_TR.unbind(1), strict=True))
        query_TD = self.query(hidden_TD) / math.sqrt(hidden_TD.shape[1])
        # One [T, D] at a time: [T, R, D] would be R times the model's largest activation.
        scores = [(query_TD * hidden_TD.index_select(0, rows)).sum(1) for rows, _ in recent]
        scores_TR = (torch.stack(scores, dim=1) + self.distance_bias).masked_fill(~is_token_TR, -math.inf)
        shares = scores_TR.softmax(1).unbind(1)
        pooled = hidden_TD * shares[0].unsqueeze(1)
        for share, (rows, _) in zip(shares[1:], recent[1:], strict=True):
            pooled = pooled + hidden_TD.index_select(0, rows) * share.unsqueeze(1)
        return pooled


class Aggregation(nn.Module):
    """A representation at every token, of that token and those before it in its sequence.

    With the default config it is the decoder's output, and has no parameters.

    Args:
        config: what it is made of.
        width: D.
        num_layers: L, of the decoder.
    """

    def __init__(self, config: AggregationConfig, width: int, num_layers: int) -> None:
        super().__init__()
        self.config = config
        self.num_layers = num_layers
        self.layer_mix = LayerMix(num_layers) if config.layers == "mix" else None
        self.recent_attention = (
            RecentAttention(width, config.num_recent) if config.tokens == "attention" else None
        )

    def forward(self, layers: Sequence[Tensor], layout: Layout) -> Tensor:
        """`[T, D]` of the layers' hidden states.

        Args:
            layers: L times `[T, D]`, as from `Decoder.layers`; the last alone will do unless layers are mixed.
            layout: of the tokens.

        Raises:
            ValueError: if layers are mixed and there are not L.
        """
        if self.layer_mix is None:
            hidden_TD = layers[-1]
        elif len(layers) == self.num_layers:
            hidden_TD = self.layer_mix(layers)
        else:
            raise ValueError(f'aggregation.layers "mix" is over {self.num_layers} layers, got {len(layers)}')
        if self.config.tokens == "last":
            return hidden_TD
        recent_TR, is_token_TR = _recent(layout.positions, self.config.num_recent)
        if self.recent_attention is not None:
            return self.recent_attention(hidden_TD, recent_TR, is_token_TR)
        return _mean(hidden_TD, recent_TR, is_token_TR)


def _recent(positions: Tensor, num_recent: int) -> tuple[Tensor, Tensor]:
    """Rows `[T, R]` of each token and those before it, and which of them are of its sequence."""
    distances = torch.arange(num_recent, device=positions.device)
    rows_TR = torch.arange(positions.numel(), device=positions.device).unsqueeze(1) - distances
    return rows_TR.clamp(min=0), positions.unsqueeze(1) >= distances


def _mean(hidden_TD: Tensor, recent_TR: Tensor, is_token_TR: Tensor) -> Tensor:
    total = hidden_TD
    for rows, is_token in list(zip(recent_TR.unbind(1), is_token_TR.unbind(1), strict=True))[1:]:
        total = total + hidden_TD.index_select(0, rows) * is_token.unsqueeze(1)
    return total / is_token_TR.sum(1, keepdim=True)
