"""The causal decoder: a stack of blocks over packed sequences, then a final norm.

Shapes: T packed tokens, B sequences, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
import tyro
from torch import Tensor, nn

from foundation.attention_tiles import AttentionConfig, continued_tiles, tiles
from foundation.blocks.gated import GatedBlock
from foundation.blocks.hstu import HSTUBlock, pair_time_bucket
from foundation.blocks.plain import PlainBlock
from foundation.branches import Branches, seen_by_branches
from foundation.dropout import Dropout
from foundation.key_values import KeyValues, LayerKeyValues, joining
from foundation.layout import Layout, last_tokens
from foundation.rotary import rotation
from foundation.shared_inputs import SharedInputs

BlockKind = Literal["plain", "gated", "hstu"]


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder, and what it is made of.

    Args:
        width: D, a multiple of 2 * `num_heads`.
        num_layers: blocks.
        num_heads: of each block's attention.
        dropout: the share dropped while training, in [0, 1).
        block: "plain", "gated" (residuals) or "hstu" (reads the times of tokens).
        attention: which tokens a token sees; a dict of its fields will do.
        hstu_window: the constant n of "hstu" blocks: the history window + 1, which `FoundationConfig` sets.

    Raises:
        ValueError: if a field is out of range; it names the field, its value and what would be right.
    """

    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.1
    block: BlockKind = "plain"
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    hstu_window: Annotated[int, tyro.conf.Suppress] = 201

    def __post_init__(self) -> None:
        if isinstance(self.attention, dict):  # as config.json has it
            object.__setattr__(self, "attention", AttentionConfig(**self.attention))
        for name in ("width", "num_layers", "num_heads", "hstu_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoder.{name} must be >= 1, got {getattr(self, name)}")
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"decoder.width must be a multiple of 2 * num_heads = {2 * self.num_heads} "
                f"(rotary positions turn pairs within a head), got {self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"decoder.dropout must be in [0, 1), got {self.dropout}")
        if self.block not in get_args(BlockKind):
            raise ValueError(f"decoder.block must be one of {get_args(BlockKind)}, got {self.block!r}")

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DecoderConfig:
        """From plain values, as `dataclasses.asdict` gives them; what an older release lacks is the default.

        Raises:
            ValueError: if there is a field that no decoder has.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - set(known)):
            raise ValueError(f"decoder has no field {unknown}, only {known}")
        return cls(**values)


class DecoderPass(NamedTuple):
    """What one pass over whole sequences yields."""

    layers: tuple[Tensor, ...]
    """Hidden states `[T, D]` under the final norm: after each block, or the last alone; `[B, D]` by `read_last`."""
    key_values: tuple[LayerKeyValues, ...]
    """Of the top layers, lowest first; as many as were asked for."""


def _block(config: DecoderConfig) -> PlainBlock | GatedBlock | HSTUBlock:
    sizes = (config.width, config.num_heads, config.dropout)
    if config.block == "plain":
        return PlainBlock(*sizes)
    return GatedBlock(*sizes) if config.block == "gated" else HSTUBlock(*sizes, config.hstu_window)


class Decoder(nn.Module):
    """A stack of blocks over packed sequences, and a final norm.

    `times_T` is read by "hstu" blocks alone: int64 unix seconds `[T]`, each token's own *when*. They raise a
    ValueError without it.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
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

    def forward(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> Tensor:
        """Hidden states `[T, D]`, normed, of input tokens `[T, D]`."""
        return self.read(x_TD, layout, times_T).layers[-1]

    def layers(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> tuple[Tensor, ...]:
        """Hidden states `[T, D]` after each block, each under the final norm; the last are those of `forward`."""
        return self.read(x_TD, layout, times_T, every_layer=True).layers

    def read(
        self,
        x_TD: Tensor,
        layout: Layout,
        times_T: Tensor | None = None,
        every_layer: bool = False,
        num_kept: int = 0,
    ) -> DecoderPass:
        """One pass over whole sequences, in training too.

        Args:
            x_TD: input tokens `[T, D]`.
            layout: of the tokens.
            times_T: of the tokens.
            every_layer: give hidden states after each block, not those after the last alone.
            num_kept: keep keys and values of so many layers, from the top down.
        """
        shared = self._shared_inputs(layout, times_T)
        x_TD = self.dropout(x_TD)
        hidden, kept = [], []
        for number, block in enumerate(self.blocks, start=1):
            x_TD, key_values = block(x_TD, shared)
            if every_layer or number == len(self.blocks):
                hidden.append(self.final_norm(x_TD))
            if number > len(self.blocks) - num_kept:
                kept.append(key_values)
        return DecoderPass(tuple(hidden), tuple(kept))

    def read_last(self, x_TD: Tensor, layout: Layout, num_kept: int = 0) -> DecoderPass:
        """As `read`, with hidden states `[B, D]` of each sequence's last token alone.

        The top layer computes keys and values of all tokens, and the rest of the last ones only. What is kept is
        that of `read`.

        Args:
            x_TD: input tokens `[T, D]`.
            layout: of the tokens; every sequence has one.
            num_kept: as in `read`.

        Raises:
            ValueError: if the blocks are "hstu", which compute no queries apart.
        """
        if self.config.block == "hstu":
            raise ValueError('decoder.block is "hstu"; it can\'t be read at last tokens alone')
        shared = self._shared_inputs(layout, None)
        *lower, top = self.blocks
        x_TD, kept = self.dropout(x_TD), []
        for block in lower:
            x_TD, key_values = block(x_TD, shared)
            kept.append(key_values)
        sight = continued_tiles(last_tokens(layout), layout, self.config.attention)
        x_BD, key_values = top(x_TD, shared._replace(tiles=sight, query_rows=layout.last_index))
        kept = [*kept, key_values][len(self.blocks) - num_kept :]
        return DecoderPass((self.final_norm(x_BD),), tuple(kept))

    def branch(self, x_CD: Tensor, branches: Branches, stored: tuple[LayerKeyValues, ...]) -> Tensor:
        """Hidden states `[C, D]`, normed, of tokens that enter below the top layers, each continuing a sequence alone.

        Args:
            x_CD: what the lowest of these layers reads.
            branches: which sequence each continues.
            stored: keys and values of the top layers, as many as the tokens pass through (`read`).

        Raises:
            ValueError: if there are more than the decoder has layers, or its blocks are "hstu", whose sum over tokens
                has no place for one more.
        """
        if self.config.block == "hstu":
            raise ValueError('decoder.block is "hstu"; branches need blocks of kind "plain" or "gated"')
        if not 1 <= len(stored) <= len(self.blocks):
            raise ValueError(
                f"stored keys and values are of {len(stored)} layers; it must be 1 to {len(self.blocks)}, the "
                "decoder's own"
            )
        angles = rotation(branches.layout.positions, self.config.head_width)
        seen = seen_by_branches(branches, self.config.attention)
        shared = SharedInputs(branches.layout, angles, branches=branches, seen=seen)
        x_CD = self.dropout(x_CD)
        for block, of_layer in zip(list(self.blocks)[-len(stored) :], stored, strict=True):
            x_CD, _ = block(x_CD, shared, of_layer)
        return self.final_norm(x_CD)

    def prefill(
        self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Hidden states of whole sequences, as `forward`, and the keys and values to continue them from.

        Raises:
            RuntimeError: in training mode, where dropout would be stored with them.
        """
        offsets = torch.cat((layout.lengths.new_zeros(1), layout.lengths.cumsum(0)))
        return self._kept(x_TD, self._shared_inputs(layout, times_T), KeyValues((), offsets, times_T))

    def extend(
        self, x_TD: Tensor, new_layout: Layout, stored: KeyValues, times_T: Tensor | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Hidden states of new tokens, as if the whole sequences had been read again.

        Args:
            x_TD: new tokens only, packed.
            new_layout: `layout(lengths)` of the new tokens; every stored sequence has a length, 0 if nothing is new.
            stored: from `prefill` or an earlier `extend`.
            times_T: of the new tokens.

        Returns:
            `[T, D]` of the new tokens, and the keys and values of stored and new.

        Raises:
            ValueError: if the numbers of sequences or of layers differ.
            RuntimeError: in training mode, where dropout would be stored with them.
        """
        if len(stored.layers) != len(self.blocks):
            raise ValueError(
                f"stored keys and values are of {len(stored.layers)} layers, the decoder has {len(self.blocks)}"
            )
        joined = joining(new_layout, stored.offsets)
        layout, config = joined.new_layout, self.config
        sight = continued_tiles(layout, joined.key_layout, config.attention)
        offsets = torch.cat((stored.offsets[:1], joined.key_layout.lengths.cumsum(0)))
        if config.block != "hstu":
            angles = rotation(layout.positions, config.head_width)
            shared = SharedInputs(layout, angles, sight, joining=joined)
            return self._kept(x_TD, shared, stored._replace(offsets=offsets))
        times_T = _required(times_T, x_TD.shape[0])
        all_times_T = joined.join(_required(stored.times_T, int(stored.offsets[-1])), times_T)
        bucket = pair_time_bucket(sight, times_T, all_times_T)
        shared = SharedInputs(layout, tiles=sight, time_bucket=bucket, joining=joined)
        return self._kept(x_TD, shared, KeyValues(stored.layers, offsets, all_times_T))

    def _kept(self, x_TD: Tensor, shared: SharedInputs, stored: KeyValues) -> tuple[Tensor, KeyValues]:
        if self.training:
            raise RuntimeError("keys and values are kept in eval mode only: call decoder.eval() first")
        kept = []
        for block, earlier in zip(self.blocks, stored.layers or [None] * len(self.blocks), strict=True):
            x_TD, key_values = block(x_TD, shared, earlier)
            kept.append(key_values)
        return self.final_norm(x_TD), stored._replace(layers=tuple(kept))

    def _shared_inputs(self, layout: Layout, times_T: Tensor | None) -> SharedInputs:
        attention = self.config.attention
        if self.config.block == "hstu":
            times_T = _required(times_T, layout.positions.shape[0])
            sight = tiles(layout, attention)
            return SharedInputs(layout, tiles=sight, time_bucket=pair_time_bucket(sight, times_T, times_T))
        angles = rotation(layout.positions, self.config.head_width)
        sees_all = attention.is_full(layout.dense_index.shape[1])
        return SharedInputs(layout, angles, None if sees_all else tiles(layout, attention))


def _required(times_T: Tensor | None, num_tokens: int) -> Tensor:
    if times_T is None or times_T.shape != (num_tokens,) or times_T.is_floating_point():
        found = "none" if times_T is None else f"{times_T.dtype} of {tuple(times_T.shape)}"
        raise ValueError(
            'blocks of kind "hstu" read times_T, int64 unix seconds of each token\'s own when, '
            f"[{num_tokens}]; got {found}"
        )
    return times_T
