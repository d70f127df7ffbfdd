"""The profile's tower between fused parts: what PyTorch has a dozen operators for becomes two.

Shapes: B requests, T packed tokens, D decoder width, D_profile vector width.
"""

from __future__ import annotations

from torch import Tensor, nn

from foundation.item_tower import ItemVectors
from foundation.key_values import KeyValues
from foundation.model import SMALLEST_NORM
from ranker.arches.last_token_tower import LastTokenTower
from ranker.arches.profile_tower import ProfileEncoding
from ranker.features.inputs import ProfileInputs
from serving.fused_bags import FusedBags, FusedFacets
from serving.fused_decoder import FusedDecoder
from serving.kernels.bags.ops import embed_tokens


class FusedTower(nn.Module):
    """`LastTokenTower` by `marquee::embed_tokens` and `marquee::profile_vector`, around its decoder.

    Submodules have the names that they have there.

    Args:
        tower: whose decoder and embeddings are fused already.
    """

    def __init__(self, tower: LastTokenTower) -> None:
        super().__init__()
        assert isinstance(tower.foundation.decoder, FusedDecoder)
        assert isinstance(tower.foundation.facet_embedding, FusedFacets)
        assert isinstance(tower.sparse, FusedBags)
        self.crossing_layers = tower.crossing_layers
        self.foundation = tower.foundation
        self.sparse = tower.sparse
        self.dense = tower.dense

    def forward(self, inputs: ProfileInputs, items: ItemVectors) -> ProfileEncoding:
        """As of `LastTokenTower`."""
        decoder = self.foundation.decoder
        assert isinstance(decoder, FusedDecoder)
        tokens_TD, offsets = self._tokens(inputs, items)
        passed = decoder.read_last_of(tokens_TD, offsets, self.crossing_layers)
        hidden_BD = self.foundation.hidden_states(passed.layers, inputs.layout)
        vector = self.sparse.profile_vector(hidden_BD, SMALLEST_NORM, inputs.sparse, self.dense(inputs.dense))
        if not self.crossing_layers:
            return ProfileEncoding(vector, None)
        return ProfileEncoding(vector, None, KeyValues(passed.key_values, offsets))

    def _tokens(self, inputs: ProfileInputs, items: ItemVectors) -> tuple[Tensor, Tensor]:
        """Tokens, and offsets `[B + 1]` of them."""
        foundation = self.foundation
        if foundation.age_column is not None:
            return foundation.tokens(inputs.facet_ids, inputs.item_ids, items), inputs.token_offsets
        facets = foundation.facet_embedding.weight
        return embed_tokens(
            inputs.facet_ids, facets, inputs.item_ids, items.vectors, inputs.last_index, inputs.positions
        )
