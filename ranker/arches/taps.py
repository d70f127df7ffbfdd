"""Layer taps: what any of the decoder's layers know of a request, beside the release's own vector.

Shapes: B requests, T packed tokens, R recent tokens, D decoder width, P tapped layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from foundation.aggregation import LayerMix, Pool
from foundation.errors import DataError
from foundation.layout import Layout
from foundation.model import unit


@dataclass(frozen=True)
class ProfileConfig:
    """What the profile's vector holds of the decoder, beside the release's own vector.

    Attributes:
        taps: decoder layers, counted from 1 at the bottom, whose hidden states join the vector; none: no layer's.
        mix_taps: join a learned average of the tapped layers, not each of them.
        tap_tokens: of a tapped layer, "last" (the request's own token), "mean" of the newest, or "attention" over them.
        tap_recent: R, how many tokens count as the newest, the request's own among them.
    """

    taps: tuple[int, ...] = ()
    mix_taps: bool = False
    tap_tokens: Pool = "last"
    tap_recent: int = 8

    def __post_init__(self) -> None:
        if min(self.taps, default=1) < 1 or len(set(self.taps)) < len(self.taps):
            raise ValueError(f"ProfileConfig.taps is {self.taps}; layers are different numbers from 1")
        if self.tap_tokens not in get_args(Pool):
            raise ValueError(
                f"ProfileConfig.tap_tokens is {self.tap_tokens!r}; it must be one of {get_args(Pool)}"
            )
        if self.tap_recent < 1:
            raise ValueError(f"ProfileConfig.tap_recent is {self.tap_recent}; it must be at least 1")


class TokenAttention(nn.Module):
    """softmax_s((W h_0)·h_s / sqrt(D) + b_s) over a request's newest tokens s, 0 its own; at first their mean."""

    def __init__(self, width: int, num_recent: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(num_recent))
        nn.init.zeros_(self.query.weight)

    def forward(self, recent_BRD: Tensor, is_token_BR: Tensor) -> Tensor:
        """Shares of the tokens, `[B, R]`."""
        query_BD = self.query(recent_BRD[:, 0]) / math.sqrt(recent_BRD.shape[2])
        scores_BR = torch.einsum("bd,brd->br", query_BD, recent_BRD) + self.distance_bias
        return scores_BR.masked_fill(~is_token_BR, -math.inf).softmax(1)


class LayerTaps(nn.Module):
    """Unit vectors of tapped layers, one after another: `[B, P · D]`, or `[B, D]` where they are mixed.

    Only the newest tokens of each request are read, so a tap costs next to nothing beside the decoder.

    Args:
        config: with at least one tap.
        width: D.
        num_layers: of the decoder.

    Raises:
        DataError: a tap is above the decoder's layers.
    """

    def __init__(self, config: ProfileConfig, width: int, num_layers: int) -> None:
        super().__init__()
        if max(config.taps) > num_layers:
            raise DataError(
                f"ProfileConfig.taps is {config.taps}; the release's decoder has {num_layers} layers"
            )
        self.config = config
        self.layer_mix = LayerMix(len(config.taps)) if config.mix_taps else None
        num_vectors = 1 if config.mix_taps else len(config.taps)
        self.width = num_vectors * width
        self.attention: nn.ModuleList | None = None
        if config.tap_tokens == "attention":
            self.attention = nn.ModuleList(
                TokenAttention(width, config.tap_recent) for _ in range(num_vectors)
            )

    def forward(self, layers: Sequence[Tensor], layout: Layout) -> Tensor:
        """`[B, width]` of the hidden states `[T, D]` of all the decoder's layers."""
        num_recent = 1 if self.config.tap_tokens == "last" else self.config.tap_recent
        rows_BR, is_token_BR = newest_tokens(layout, num_recent)
        tapped = [
            layers[number - 1].index_select(0, rows_BR.flatten()).unflatten(0, (-1, num_recent))
            for number in self.config.taps
        ]
        if self.layer_mix is not None:
            tapped = [self.layer_mix(tapped)]
        return torch.cat([unit(self._pooled(*each, is_token_BR)) for each in enumerate(tapped)], dim=1)

    def _pooled(self, number: int, recent_BRD: Tensor, is_token_BR: Tensor) -> Tensor:
        """`[B, D]` of the newest tokens of one tapped layer."""
        if self.config.tap_tokens == "last":
            return recent_BRD[:, 0]
        if self.attention is not None:
            shares_BR = self.attention[number](recent_BRD, is_token_BR)
        else:
            shares_BR = is_token_BR / is_token_BR.sum(1, keepdim=True)
        return torch.einsum("br,brd->bd", shares_BR, recent_BRD)


def newest_tokens(layout: Layout, num_recent: int) -> tuple[Tensor, Tensor]:
    """Rows `[B, R]` of each request's newest tokens, its own first, and which of them there are."""
    distances = torch.arange(num_recent, device=layout.last_index.device)
    rows_BR = layout.last_index.unsqueeze(1) - distances
    last_position_B = layout.positions.index_select(0, layout.last_index)
    return rows_BR.clamp(min=0), last_position_B.unsqueeze(1) >= distances
