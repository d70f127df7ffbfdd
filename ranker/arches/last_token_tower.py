"""The decoder's tower for inference, where the request's own token is all that is read of the top layer.

Shapes: B requests, T packed tokens, D decoder width, D_profile vector width.
"""

from __future__ import annotations

import torch
from torch import nn

from foundation.item_tower import ItemVectors
from foundation.key_values import KeyValues
from foundation.model import unit
from ranker.arches.profile_tower import DecoderTower, ProfileEncoding
from ranker.features.inputs import ProfileInputs


def reads_last_tokens_alone(tower: DecoderTower) -> bool:
    """Whether a vector is made of nothing of the decoder but its request's own token in the top layer."""
    return tower.foundation.config.aggregation.tokens == "last" and not tower.reads_every_layer


class LastTokenTower(nn.Module):
    """`DecoderTower` with the top layer computed where it is read; training needs all of its hidden states.

    Submodules have the names that they have there.

    Args:
        tower: one of which `reads_last_tokens_alone` holds.
    """

    def __init__(self, tower: DecoderTower) -> None:
        super().__init__()
        self.crossing_layers = tower.crossing_layers
        self.foundation = tower.foundation
        self.sparse = tower.sparse
        self.dense = tower.dense

    def forward(self, inputs: ProfileInputs, items: ItemVectors) -> ProfileEncoding:
        """Run the decoder once per request; arguments as of `DecoderTower.forward`, no hidden states returned."""
        foundation, layout = self.foundation, inputs.layout
        tokens_TD = foundation.tokens(inputs.facet_ids, inputs.item_ids, items)
        passed = foundation.decoder.read_last(tokens_TD, layout, num_kept=self.crossing_layers)
        hidden_BD = foundation.hidden_states(passed.layers, layout)
        vector = torch.cat((unit(hidden_BD), self.sparse(inputs.sparse), self.dense(inputs.dense)), dim=1)
        if not self.crossing_layers:
            return ProfileEncoding(vector, None)
        return ProfileEncoding(vector, None, KeyValues(passed.key_values, inputs.token_offsets))
