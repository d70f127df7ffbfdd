"""Profile towers: from a request's history and features to one vector, once per request.

Shapes: B requests, T packed tokens, I item rows, D decoder width, X dense features, D_profile vector width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation.item_tower import ItemVectors
from foundation.key_values import KeyValues
from foundation.model import FoundationModel, unit
from ranker.arches.dense import DenseArch
from ranker.arches.sparse import SparseArch
from ranker.arches.taps import LayerTaps, ProfileConfig
from ranker.features.inputs import ProfileInputs
from ranker.state import ProfileState


class ProfileEncoding(NamedTuple):
    """What one run of a profile tower yields."""

    vector: Tensor
    """`[B, D_profile]`."""
    hidden: Tensor | None
    """`[T, D]` the decoder's hidden states, for the next-item auxiliary loss; None without a decoder."""
    key_values: KeyValues | None = None
    """Of the decoder's top layers, where candidates cross them."""

    @property
    def state(self) -> ProfileState:
        """What the candidate half reads of it."""
        return ProfileState(self.vector, self.key_values)


class DecoderTower(nn.Module):
    """The imported foundation model as a trainable part of the ranker, beside sparse and dense features.

    `vector = [unit(hidden of the request's own token) ; taps ; pooled sparse features ; dense features]`. The
    release's own hidden state comes first and has length one, so that its dot product with a unit item vector is
    the foundation model's own cosine.

    Args:
        foundation: trained along with the ranker.
        sparse: embeddings of the sparse profile features.
        dense: of the dense profile features.
        config: what else of the decoder joins the vector.
        crossing_layers: of the decoder, from the top down, whose keys and values are kept for candidates.
    """

    def __init__(
        self,
        foundation: FoundationModel,
        sparse: SparseArch,
        dense: DenseArch,
        config: ProfileConfig,
        crossing_layers: int = 0,
    ) -> None:
        super().__init__()
        self.crossing_layers = crossing_layers
        self.foundation = foundation
        self.sparse: nn.Module = sparse  # serving swaps it
        self.dense = dense
        sizes = foundation.config.decoder
        self.taps = LayerTaps(config, sizes.width, sizes.num_layers) if config.taps else None
        self.item_width = sizes.width
        taps_width = 0 if self.taps is None else self.taps.width
        self.width = self.item_width + taps_width + sparse.width + dense.width

    @property
    def reads_every_layer(self) -> bool:
        """Whether hidden states below the decoder's top layer are read."""
        return self.taps is not None or self.foundation.config.aggregation.layers == "mix"

    def item_vectors(self) -> ItemVectors:
        """Of all items: computed once a step, for the tokens, the candidates and the auxiliary loss alike."""
        return self.foundation.item_vectors()

    def forward(self, inputs: ProfileInputs, items: ItemVectors) -> ProfileEncoding:
        """Run the decoder once per request.

        Args:
            inputs: tokens and features of B requests.
            items: from `item_vectors()`.
        """
        foundation, layout = self.foundation, inputs.layout
        tokens_TD = foundation.tokens(inputs.facet_ids, inputs.item_ids, items)
        passed = foundation.decoder.read(
            tokens_TD, layout, every_layer=self.reads_every_layer, num_kept=self.crossing_layers
        )
        hidden_TD = foundation.hidden_states(passed.layers, layout)
        of_decoder = [unit(foundation.profile_vector(hidden_TD, layout))]
        if self.taps is not None:
            of_decoder.append(self.taps(passed.layers, layout))
        vector = torch.cat((*of_decoder, self.sparse(inputs.sparse), self.dense(inputs.dense)), dim=1)
        if not self.crossing_layers:
            return ProfileEncoding(vector, hidden_TD)
        return ProfileEncoding(vector, hidden_TD, KeyValues(passed.key_values, inputs.token_offsets))


class PooledTower(nn.Module):
    """The profile without a decoder: mean bags of recent items and of their genres among the sparse features.

    Everything else (profile features, request context, dense features) is what `DecoderTower` gets too, so a
    difference between the two is the decoder's.

    Args:
        sparse: embeddings of the sparse profile features, the recent-item bags included.
        dense: of the dense profile features.
    """

    def __init__(self, sparse: SparseArch, dense: DenseArch) -> None:
        super().__init__()
        self.sparse: nn.Module = sparse  # serving swaps it
        self.dense = dense
        self.item_width = 0
        self.width = sparse.width + dense.width

    def item_vectors(self) -> None:
        """None: there is no item tower."""

    def forward(self, inputs: ProfileInputs, items: None = None) -> ProfileEncoding:
        """Pool the request's bags; the tokens of `inputs` are not read."""
        return ProfileEncoding(torch.cat((self.sparse(inputs.sparse), self.dense(inputs.dense)), dim=1), None)
