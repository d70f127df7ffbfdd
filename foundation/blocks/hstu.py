"""The HSTU block: one layer of pointwise attention, biased by distance and by time, and gated.

Shapes: T packed tokens, B sequences, D model width, H heads, K head width; N tiles of Q queries and L keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.attention_tiles import Tiles
from foundation.dropout import Dropout
from foundation.key_values import LayerKeyValues
from foundation.shared_inputs import SharedInputs

TIME_BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds
NUM_TIME_BUCKETS = 128
# Whole seconds compare exactly; a logarithm may fall on either side of a boundary, as its place in memory has it.
TIME_BOUNDARIES = [math.ceil(math.exp(TIME_BUCKET_WIDTH * bucket)) for bucket in range(1, NUM_TIME_BUCKETS)]


def time_bucket(seconds: Tensor) -> Tensor:
    """floor(ln(max(1, |seconds|)) / 0.301) of int64 seconds, at most 127."""
    boundaries = torch.tensor(TIME_BOUNDARIES, device=seconds.device)
    return torch.bucketize(seconds.abs(), boundaries, right=True)


def pair_time_bucket(tiles: Tiles, query_times_T: Tensor, key_times_T: Tensor) -> Tensor:
    """Bucket of the seconds from each key's *when* to the query's own; int64 `[B, N, Q, L]`."""
    queries = tiles.queries(query_times_T[:, None, None]).squeeze(1)
    keys = tiles.keys(key_times_T[:, None, None]).squeeze(1)
    return time_bucket(queries - keys.transpose(-1, -2))


class HSTUBlock(nn.Module):
    """u, v, q, k = silu(W norm(x)); a = silu(q·k + b_distance + b_time) / n; x += W_o(u * norm(a v)).

    HSTU (arXiv 2402.17152, equations 1 to 3; one bias for each distance and each bucket of time, the same for all
    heads, as in its published code). It has no softmax, so how much a token takes grows with what it sees; n is a
    constant, hence a token appended changes none before it.

    Args:
        width: D.
        num_heads: H.
        dropout: the share dropped of what the block adds, in [0, 1).
        window: n, the longest sequence in tokens: the history window and the request's own token. Also how many
            distances have a bias of their own; longer ones share the last.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 4 * width, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(window))
        self.time_bias = nn.Parameter(torch.zeros(NUM_TIME_BUCKETS))
        self.attended_norm = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_TD: Tensor, shared: SharedInputs, stored: LayerKeyValues | None = None
    ) -> tuple[Tensor, LayerKeyValues]:
        """`[T, D]` to `[T, D]`, with the keys and values of all tokens: the stored and these."""
        assert shared.tiles is not None and shared.time_bucket is not None
        u_TD, *vqk = F.silu(self.project_in(self.norm(x_TD))).chunk(4, dim=-1)
        v_THK, q_THK, k_THK = (x.unflatten(-1, (self.num_heads, -1)) for x in vqk)
        k_THK, v_THK = kept = shared.joined(LayerKeyValues(k_THK, v_THK), stored)
        tiles = shared.tiles
        scores = tiles.queries(q_THK) @ tiles.keys(k_THK).transpose(-1, -2)
        scores = scores + self._bias(tiles, shared.time_bucket).unsqueeze(1)
        weights = (F.silu(scores) / self.window).masked_fill(~tiles.visible.unsqueeze(1), 0.0)
        attended_TD = tiles.packed(weights @ tiles.keys(v_THK)).flatten(1)
        added_TD = self.project_out(u_TD * self.attended_norm(attended_TD))
        return x_TD + self.dropout(added_TD), kept

    def _bias(self, tiles: Tiles, time_bucket: Tensor) -> Tensor:
        distance = tiles.distance.clamp(0, self.window - 1)
        by_distance = self.distance_bias.index_select(0, distance.flatten()).view(distance.shape)
        by_time = self.time_bias.index_select(0, time_bucket.flatten()).view(time_bucket.shape)
        return by_distance + by_time
