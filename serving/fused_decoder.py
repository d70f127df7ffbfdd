"""The decoder of plain blocks by the fused operator `marquee::decoder_step`, with `Decoder`'s own way of being called.

Shapes: T packed tokens, B sequences, C branches over the batch, D model width, H heads, K head width, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foundation.blocks.plain import PlainBlock
from foundation.branches import Branches
from foundation.decoder import Decoder, DecoderPass
from foundation.key_values import KeyValues, LayerKeyValues, joining
from foundation.layout import Layout
from foundation.rotary import rotation
from serving.kernels.decoder.ops import WEIGHTS_PER_LAYER, Sight, Stored, Weights, decoder_step
from serving.no_fused_form import NoFusedForm
from serving.quantise import packed_weights

NORM_EPSILON = 1e-5
"""kNormEpsilon in serving/kernels/decoder/step.h."""


class FusedDecoder(nn.Module):
    """A plain decoder for inference: its weights packed, as buffers; no parameters.

    Args:
        decoder: the reference; it isn't changed.
        num_positions: P, one more than the last position that a token may sit at.

    Raises:
        NoFusedForm: if its blocks aren't plain, or aren't float32.
    """

    def __init__(self, decoder: Decoder, num_positions: int = 4096) -> None:
        super().__init__()
        self.config = config = decoder.config
        if config.block != "plain":
            raise NoFusedForm(
                f"decoder.block is {config.block!r}; only blocks of kind 'plain' have a fused form"
            )
        if {parameter.dtype for parameter in decoder.parameters()} != {torch.float32}:
            raise NoFusedForm("the decoder's parameters aren't float32")
        if any(norm.eps != NORM_EPSILON for norm in decoder.modules() if isinstance(norm, nn.LayerNorm)):
            raise NoFusedForm(f"a norm's epsilon isn't {NORM_EPSILON}")
        tensors, scales = _weights(decoder)
        self._num_layers, self._num_weights, self._num_scales = len(decoder.blocks), len(tensors), len(scales)
        for kind, group in (("weight", tensors), ("scales", scales)):
            for index, tensor in enumerate(group):
                self.register_buffer(f"{kind}_{index}", tensor.detach().clone())
        angles = rotation(torch.arange(num_positions), config.head_width)
        self.register_buffer("rotations", torch.cat(angles, dim=-1).squeeze(1))
        window = 0 if config.attention.kind == "full" else config.attention.window
        self._sight = Sight(window=window, num_prefix=config.attention.num_prefix)

    def forward(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> Tensor:
        """As `Decoder.forward`."""
        return self.read(x_TD, layout, times_T).layers[-1]

    def read(
        self,
        x_TD: Tensor,
        layout: Layout,
        times_T: Tensor | None = None,
        every_layer: bool = False,
        num_kept: int = 0,
    ) -> DecoderPass:
        """As `Decoder.read`; `times_T` is read by no plain block.

        Raises:
            NoFusedForm: if `every_layer` is asked for.
            ValueError: if a position is not below `num_positions`.
        """
        if every_layer:
            raise NoFusedForm(
                "the hidden states of every layer are asked for; the fused decoder has the last alone"
            )
        return self._read(x_TD, _offsets(layout), num_kept, last_only=False)

    def read_last(self, x_TD: Tensor, layout: Layout, num_kept: int = 0) -> DecoderPass:
        """As `Decoder.read_last`; every sequence must have a token, or it is a ValueError."""
        return self.read_last_of(x_TD, _offsets(layout), num_kept)

    def read_last_of(self, x_TD: Tensor, offsets: Tensor, num_kept: int = 0) -> DecoderPass:
        """The same by where sequences begin, `[B + 1]`."""
        return self._read(x_TD, offsets, num_kept, last_only=True)

    def branch(self, x_CD: Tensor, branches: Branches, stored: tuple[LayerKeyValues, ...]) -> Tensor:
        """As `Decoder.branch`."""
        earlier = Stored(_flat(stored), _offsets_of_lengths(branches.lengths))
        sight = self._sight._replace(branches=True)
        hidden_CD, _ = decoder_step(
            x_CD, _offsets(branches.layout), self._weights(len(stored)), earlier, sight
        )
        return hidden_CD

    def extend(self, x_TD: Tensor, new_layout: Layout, stored: KeyValues) -> tuple[Tensor, KeyValues]:
        """As `Decoder.extend`."""
        num_layers = self._num_layers
        earlier = Stored(_flat(stored.layers), stored.offsets)
        hidden_TD, kept = decoder_step(
            x_TD, _offsets(new_layout), self._weights(num_layers), earlier, self._sight, num_kept=num_layers
        )
        joined = joining(new_layout, stored.offsets)
        layers = (
            LayerKeyValues(*(joined.join(old, new) for old, new in zip(earlier, latest, strict=True)))
            for earlier, latest in zip(stored.layers, _paired(kept), strict=True)
        )
        offsets = _offsets_of_lengths(joined.key_layout.lengths)
        return hidden_TD, stored._replace(layers=tuple(layers), offsets=offsets)

    def _read(self, x_TD: Tensor, offsets: Tensor, num_kept: int, last_only: bool) -> DecoderPass:
        hidden, kept = decoder_step(
            x_TD, offsets, self._weights(self._num_layers), sight=self._sight,
            last_only=last_only, num_kept=num_kept,
        )  # fmt: skip
        return DecoderPass((hidden,), _paired(kept))

    def _weights(self, num_top_layers: int) -> Weights:
        first = (self._num_layers - num_top_layers) * WEIGHTS_PER_LAYER
        tensors = [self.get_buffer(f"weight_{index}") for index in range(first, self._num_weights)]
        skipped = (self._num_layers - num_top_layers) * self._num_scales // self._num_layers
        scales = [self.get_buffer(f"scales_{index}") for index in range(skipped, self._num_scales)]
        return Weights(tensors, scales, self.get_buffer("rotations"), self.config.num_heads)


def _weights(decoder: Decoder) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors and scales in the operator's order; every block has as many scales."""
    tensors: list[Tensor] = []
    scales: list[Tensor] = []
    for block in decoder.blocks:
        assert isinstance(block, PlainBlock)
        for norm, linears in (
            (block.attention_norm, (block.attention.project_in, block.attention.project_out)),
            (block.feed_forward_norm, (block.feed_forward.project_in, block.feed_forward.project_out)),
        ):
            tensors += [norm.weight, norm.bias]
            for linear in linears:
                packed, its_scales = packed_weights(linear)
                tensors += [packed] if linear.bias is None else [packed, linear.bias]
                scales += its_scales
    return [*tensors, decoder.final_norm.weight, decoder.final_norm.bias], scales


def _offsets(layout: Layout) -> Tensor:
    """`[B + 1]`: how many tokens lie before each row of the dense grid."""
    num_sequences, longest = layout.dense_index.shape
    rows = torch.arange(num_sequences + 1, device=layout.packed_index.device) * longest
    return torch.searchsorted(layout.packed_index, rows)


def _offsets_of_lengths(lengths: Tensor) -> Tensor:
    return torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))


def _flat(layers: tuple[LayerKeyValues, ...]) -> list[Tensor]:
    return [tensor.contiguous() for of_layer in layers for tensor in of_layer]


def _paired(kept: list[Tensor]) -> tuple[LayerKeyValues, ...]:
    return tuple(LayerKeyValues(*pair) for pair in zip(kept[::2], kept[1::2], strict=True))
