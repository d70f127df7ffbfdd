"""A foreign decoder behind the interface of ours: packed tokens in, packed hidden states out.

Shapes: T packed tokens, B sequences, S longest sequence, C branches over the batch, X most branches of a sequence,
L layers, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from foundation.attention_tiles import to_dense, to_packed
from foundation.branches import Branches
from foundation.decoder import DecoderPass
from foundation.foreign.protocol import ForeignDecoder, LayerMemory
from foundation.key_values import LayerKeyValues
from foundation.layout import Layout


class PackedForeign(nn.Module):
    """`foundation.decoder.Decoder`, as far as a foreign decoder can be it: times are not read, nothing is extended.

    Args:
        decoder: what reads dense batches.
    """

    def __init__(self, decoder: ForeignDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> Tensor:
        """Hidden states `[T, D]` of input tokens `[T, D]`."""
        return self.read(x_TD, layout, times_T).layers[-1]

    def layers(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> tuple[Tensor, ...]:
        """Hidden states `[T, D]` after each layer, the last as in `forward`."""
        return self.read(x_TD, layout, times_T, every_layer=True).layers

    def read(
        self,
        x_TD: Tensor,
        layout: Layout,
        times_T: Tensor | None = None,
        every_layer: bool = False,
        num_kept: int = 0,
    ) -> DecoderPass:
        """As `Decoder.read`; keys and values are kept of all layers or of none.

        Raises:
            ValueError: if those of some layers are asked for.
        """
        if num_kept not in (0, self.decoder.num_layers):
            raise ValueError(
                f"a foreign decoder passes branches through all its layers: {self.decoder.num_layers} of them, "
                f"not {num_kept}"
            )
        found = self.decoder(_dense(x_TD, layout))
        hidden = found.hidden if every_layer else found.hidden[-1:]
        kept = (LayerKeyValues(*(to_packed(each, layout) for each in layer)) for layer in found.memory)
        return DecoderPass(
            tuple(each.flatten(0, 1).index_select(0, layout.packed_index) for each in hidden),
            tuple(kept) if num_kept else (),
        )

    def read_last(self, x_TD: Tensor, layout: Layout, num_kept: int = 0) -> DecoderPass:
        """As `Decoder.read_last`, though a foreign decoder computes its last layer at all tokens."""
        passed = self.read(x_TD, layout, num_kept=num_kept)
        return passed._replace(layers=(passed.layers[-1].index_select(0, layout.last_index),))

    def branch(self, x_CD: Tensor, branches: Branches, stored: tuple[LayerKeyValues, ...]) -> Tensor:
        """As `Decoder.branch`, through all layers."""
        if not x_CD.shape[0]:
            return x_CD
        keys = Layout(branches.key_index, *branches.layout[1:])
        memory = tuple(LayerMemory(*(to_dense(each, keys) for each in layer)) for layer in stored)
        hidden_BXD = self.decoder.branch(_dense(x_CD, branches.layout), memory, branches.lengths)
        return hidden_BXD.flatten(0, 1).index_select(0, branches.layout.packed_index)


def _dense(x_TD: Tensor, layout: Layout) -> Tensor:
    """`[T, D]` to `[B, S, D]`; padding holds row 0."""
    return x_TD.index_select(0, layout.dense_index.flatten()).unflatten(0, layout.dense_index.shape)
