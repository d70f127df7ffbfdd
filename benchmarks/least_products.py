"""The matrix products that ranking a request needs at the least: what the floor of `benchmarks.latency` counts.

    decoder, all layers but the last  queries, keys, values [T, D] x [D, 3D]; attention over the tokens that each
                                      token sees, half of the square; output [T, D] x [D, D]; feed-forward
                                      [T, D] x [D, 4D] and [T, 4D] x [4D, D]
    its last layer                    keys and values of all T tokens; all else of the request's own token alone
    candidates                        the profile's share of the first layer and of the dot products, once a request;
                                      the dot products [C, E] x [E, K] and [C, K] x [K, H]; the request's features
                                      [C, F] x [F, H]; the other layers and the heads. What an item alone decides is
                                      folded into a table and not counted
    crossed layers                    each candidate through the layer, seeing all T tokens and itself, and then
                                      [C, D] x [D, H]

Norms, activations, rotations, softmax, gathers and bags are not counted: no product is made of them.

Shapes: T tokens of one request, C candidates, D decoder width, F feature width, H first hidden width, K dot products,
E dot-product width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from foundation.blocks.plain import FEED_FORWARD_MULTIPLE
from ranker.arches.interaction import Interaction
from ranker.arches.profile_tower import DecoderTower
from ranker.model import Ranker

_FLOAT_BYTES = 4


class Product(NamedTuple):
    """`[rows, inner] x [inner, outer]`, so many times.

    Attributes:
        part: `profile` or `candidates`.
        weights: whether the right side is a weight that is read for it.
    """

    part: str
    rows: int
    inner: int
    outer: int
    times: float = 1
    weights: bool = True

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.outer * self.times

    @property
    def bytes(self) -> float:
        """Of its weights, read once."""
        return _FLOAT_BYTES * self.inner * self.outer * self.times if self.weights else 0


def least_products(ranker: Ranker, tokens: int, candidates: int) -> list[Product]:
    """Of one request with T tokens and C candidates.

    Args:
        ranker: with a decoder of plain blocks that sees all earlier tokens, linear heads and no cross network.
        tokens: T.
        candidates: C.
    """
    assert isinstance(ranker.profile_tower, DecoderTower)
    return [
        *_profile(ranker.profile_tower, tokens),
        *_candidates(ranker.interaction, candidates),
        *_crossed(ranker, tokens, candidates),
    ]


def _profile(tower: DecoderTower, tokens: int) -> Iterator[Product]:
    decoder = tower.foundation.config.decoder
    width, lower = decoder.width, decoder.num_layers - 1
    seen = tokens * (tokens + 1) / 2
    yield Product("profile", tokens, width, 3 * width, lower)
    yield Product("profile", 1, width, 1, lower * 2 * seen, weights=False)
    yield from _after_attention("profile", tokens, width, lower)
    yield Product("profile", tokens, width, 2 * width)
    yield Product("profile", 1, width, width)
    yield Product("profile", 1, width, tokens, 2, weights=False)
    yield from _after_attention("profile", 1, width, 1)


def _after_attention(part: str, rows: int, width: int, layers: int) -> Iterator[Product]:
    inner_width = FEED_FORWARD_MULTIPLE * width
    yield Product(part, rows, width, width, layers)
    yield Product(part, rows, width, inner_width, layers)
    yield Product(part, rows, inner_width, width, layers)


def _candidates(interaction: Interaction, candidates: int) -> Iterator[Product]:
    dots, dot_width = interaction.num_dots, interaction.dot_width
    for once in (interaction.profile_projection, interaction.profile_dots):
        yield Product("candidates", 1, once.in_features, once.out_features)
    yield Product("candidates", candidates, dot_width, dots, weights=False)
    yield Product("candidates", candidates, dots, interaction.profile_projection.out_features)
    assert isinstance(interaction.heads, nn.Linear)
    layers = [layer for layer in interaction.mlp if isinstance(layer, nn.Linear)]
    if interaction.feature_projection is not None:
        layers.append(interaction.feature_projection)
    for layer in (*layers, interaction.heads):
        yield Product("candidates", candidates, layer.in_features, layer.out_features)


def _crossed(ranker: Ranker, tokens: int, candidates: int) -> Iterator[Product]:
    layers = ranker.config.crossing_layers
    if not layers:
        return
    projection = ranker.interaction.crossing_projection
    assert projection is not None
    width = projection.in_features
    yield Product("candidates", candidates, width, 3 * width, layers)
    yield Product("candidates", candidates, width, tokens + 1, 2 * layers, weights=False)
    yield from _after_attention("candidates", candidates, width, layers)
    yield Product("candidates", candidates, width, projection.out_features)
