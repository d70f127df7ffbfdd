"""A foreign decoder behind the interface of ours: packed tokens in, packed hidden states out.

Shapes: T packed tokens, B sequences, S longest sequence, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from foundation.foreign.protocol import ForeignDecoder, ForeignPass
from foundation.layout import Layout


class PackedForeign(nn.Module):
    """`foundation.decoder.Decoder`, as far as a foreign decoder can be it.

    Args:
        decoder: what reads dense batches.
    """

    def __init__(self, decoder: ForeignDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> Tensor:
        """Hidden states `[T, D]` of input tokens `[T, D]`; times are not read."""
        return self.layers(x_TD, layout, times_T)[-1]

    def layers(self, x_TD: Tensor, layout: Layout, times_T: Tensor | None = None) -> tuple[Tensor, ...]:
        """Hidden states `[T, D]` after each layer, the last as in `forward`."""
        return tuple(packed(hidden_BSD, layout) for hidden_BSD in self.read(x_TD, layout).hidden)

    def read(self, x_TD: Tensor, layout: Layout) -> ForeignPass:
        """The foreign decoder's own view of packed tokens."""
        return self.decoder(dense(x_TD, layout))


def dense(x_TD: Tensor, layout: Layout) -> Tensor:
    """`[T, D]` to `[B, S, D]`; padding holds row 0."""
    return x_TD.index_select(0, layout.dense_index.flatten()).unflatten(0, layout.dense_index.shape)


def packed(x_BSD: Tensor, layout: Layout) -> Tensor:
    """The inverse of `dense`."""
    return x_BSD.flatten(0, 1).index_select(0, layout.packed_index)
