"""Which keys a query sees, in tiles: some queries beside all the keys they may see, and few others.

Shapes: T packed tokens, B sequences, S longest sequence, H heads, K head width; N tiles of Q queries and L keys.

    window 3, prefix 1, tiles of Q = 4          keys
                                        p 0 1 2 3      p 0 1 2 3 4 5 6 7
    tile 0, queries 0 .. 3      query 0   x          4 x     x x x
    (before it nothing lies)          1   x x        5 x       x x x
                                      2   x x x      6 x         x x x
                                      3 x   x x x    7 x           x x x

A tile's keys are its own tokens, the tile before (Q >= window - 1, so that the window ends there), and the prefix,
which counts only where the window has passed it: L = prefix + 2 Q, and the cost is O(S (window + prefix)).
Where one tile would do, its keys are the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.layout import Layout

Kind = Literal["full", "sliding", "prefix"]
# Below it a tile's products are too small to pay for their own overhead.
SMALLEST_TILE = 16


@dataclass(frozen=True)
class AttentionConfig:
    """Which tokens a token sees.

    Args:
        kind: "full" (all tokens before it), "sliding" (the newest `window`) or "prefix" (these, and the sequence's
            first `prefix`). A token always sees itself, as one of the window.
        window: tokens, read unless `kind` is "full".
        prefix: tokens, read where `kind` is "prefix".

    Raises:
        ValueError: if a field is out of range; it names the field, its value and what would be right.
    """

    kind: Kind = "full"
    window: int = 50
    prefix: int = 8

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"decoder.attention.kind must be one of {get_args(Kind)}, got {self.kind!r}")
        for field in ("window", "prefix"):
            if getattr(self, field) < 1:
                raise ValueError(f"decoder.attention.{field} must be >= 1, got {getattr(self, field)}")

    @property
    def num_prefix(self) -> int:
        """First tokens that every later one sees: 0 unless the kind is "prefix"."""
        return self.prefix if self.kind == "prefix" else 0

    def is_full(self, longest: int) -> bool:
        """Whether nothing is out of sight in a sequence of `longest` tokens."""
        if self.kind == "full" or torch.compiler.is_exporting():  # an exported graph has no longest sequence
            return self.kind == "full"
        return longest <= self.window + self.num_prefix


class Tiles(NamedTuple):
    """Queries and keys of a batch, cut into tiles."""

    query_layout: Layout
    key_layout: Layout
    is_whole: bool  # N is 1, and the keys are all of the sequence
    num_prefix: int  # leading columns of L that hold the prefix; 0 where the tile is whole
    distance: Tensor  # [B or 1, N, Q, L], tokens from key to query
    visible: Tensor  # [B or 1, N, Q, L], bool

    def queries(self, x_THK: Tensor) -> Tensor:
        """`[T, H, K]` of the queries to `[B, H, N, Q, K]`."""
        x_BHSK = to_dense(x_THK, self.query_layout)
        return x_BHSK.unsqueeze(2) if self.is_whole else self._cut(x_BHSK)

    def keys(self, x_THK: Tensor) -> Tensor:
        """`[T, H, K]` of the keys to `[B, H, N, L, K]`."""
        x_BHSK = to_dense(x_THK, self.key_layout)
        if self.is_whole:
            return x_BHSK.unsqueeze(2)
        own = self._cut(x_BHSK)
        before = F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        first = x_BHSK[:, :, None, : self.num_prefix]
        return torch.cat((first.expand(-1, -1, own.shape[2], -1, -1), before, own), dim=3)

    def packed(self, x_BHNQK: Tensor) -> Tensor:
        """The inverse of `queries`."""
        longest = self.query_layout.dense_index.shape[1]
        x_BHSK = x_BHNQK.flatten(2, 3)[:, :, :longest]
        return to_packed(x_BHSK, self.query_layout)

    def _cut(self, x_BHSK: Tensor) -> Tensor:
        num_tiles, tile = self.visible.shape[1:3]
        missing = num_tiles * tile - x_BHSK.shape[2]
        return F.pad(x_BHSK, (0, 0, 0, missing)).unflatten(2, (num_tiles, tile))


def tiles(layout: Layout, config: AttentionConfig) -> Tiles:
    """Tiles of whole sequences.

    While exporting there is one whole tile: `torch.export` takes no shape that is a quotient of another. The graph
    gives the same, and costs O(S^2) as full attention does.
    """
    longest = layout.dense_index.shape[1]
    tile = max(config.window - 1, SMALLEST_TILE)
    positions = layout.positions
    if torch.compiler.is_exporting() or config.is_full(longest) or longest <= tile:
        own = torch.arange(longest, device=positions.device).view(1, 1, longest)
        return Tiles(layout, layout, True, 0, *sight(own, own, config))
    num_tiles, num_prefix = -(-longest // tile), config.num_prefix
    own = torch.arange(num_tiles * tile, device=positions.device).view(1, num_tiles, tile)
    first = torch.arange(num_prefix, device=positions.device).expand(1, num_tiles, num_prefix)
    distance, visible = sight(own, torch.cat((first, own - tile, own), dim=2), config)
    # A key may be listed twice, as prefix and in the tile: it counts where the window has it, else as prefix.
    near = distance < config.window
    is_first = torch.arange(visible.shape[-1], device=positions.device) < num_prefix
    return Tiles(layout, layout, False, num_prefix, distance, visible & (near ^ is_first))


def continued_tiles(layout: Layout, key_layout: Layout, config: AttentionConfig) -> Tiles:
    """One tile: a few new tokens beside the stored ones and themselves.

    Args:
        layout: of the new tokens; its positions continue those of the stored ones.
        key_layout: of stored and new tokens together.
        config: which tokens a token sees.
    """
    positions = layout.positions
    # A row of padding reads row 0, which is absent if there are no new tokens; then there is no cell either.
    queries = positions.index_select(0, layout.dense_index.flatten()).view(layout.dense_index.shape)
    keys = torch.arange(key_layout.dense_index.shape[1], device=positions.device)
    distance, visible = sight(queries.unsqueeze(1), keys.view(1, 1, -1), config)
    return Tiles(layout, key_layout, True, 0, distance, visible)


def sight(queries_BNQ: Tensor, keys_BNL: Tensor, config: AttentionConfig) -> tuple[Tensor, Tensor]:
    """Tokens from key to query, and whether the query sees the key, both `[B, N, Q, L]`, of their positions."""
    distance = queries_BNQ.unsqueeze(-1) - keys_BNL.unsqueeze(-2)
    visible = (distance >= 0) & (keys_BNL >= 0).unsqueeze(-2)
    if config.kind != "full":
        visible &= (distance < config.window) | (keys_BNL < config.num_prefix).unsqueeze(-2)
    return distance, visible


def to_dense(x_THK: Tensor, layout: Layout) -> Tensor:
    """`[T, H, K]` to `[B, H, S, K]`; padding holds row 0."""
    # index_select, not x[index]: on a CPU its backward is about ten times faster.
    gathered = x_THK.index_select(0, layout.dense_index.flatten())
    return gathered.unflatten(0, layout.dense_index.shape).transpose(1, 2)


def to_packed(x_BHSK: Tensor, layout: Layout) -> Tensor:
    """`[B, H, S, K]` to `[T, H, K]`, without the padding."""
    return x_BHSK.transpose(1, 2).flatten(0, 1).index_select(0, layout.packed_index)
