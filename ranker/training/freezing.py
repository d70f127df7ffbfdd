"""What of the imported foundation model stays as the release has it."""

from __future__ import annotations

from typing import Literal

from torch import nn

from foundation.decoder import Decoder
from foundation.errors import DataError
from foundation.model import FoundationModel
from ranker.arches.profile_tower import DecoderTower
from ranker.model import Ranker

FreezePlan = Literal["nothing", "embeddings", "lower_layers", "all"]


def freeze(ranker: Ranker, plan: FreezePlan, frozen_layers: int = 0) -> None:
    """Takes what is frozen out of training, before the ranker is sharded: it stays the same to the last byte.

    No gradient is computed for it, nor through what lies below the lowest part that is trained. A ranker without a
    decoder has nothing to freeze.

    Args:
        ranker: whose foundation model.
        plan: `nothing`; `embeddings`: those of facets and items, all of the item tower; `lower_layers`: those, and the
            first `frozen_layers` blocks; `all`: the whole foundation model.
        frozen_layers: of `lower_layers`.

    Raises:
        DataError: the decoder has fewer blocks.
    """
    tower = ranker.profile_tower
    if not isinstance(tower, DecoderTower):
        return
    for module in _frozen(tower.foundation, plan, frozen_layers):
        module.requires_grad_(False)


def is_frozen(foundation: FoundationModel) -> bool:
    """Whether nothing of it is trained."""
    return not any(parameter.requires_grad for parameter in foundation.parameters())


def keep_frozen_still(ranker: Ranker) -> None:
    """Puts a foundation model that is frozen whole in evaluation mode: it then is what it was in its release."""
    tower = ranker.profile_tower
    if isinstance(tower, DecoderTower) and is_frozen(tower.foundation):
        tower.foundation.eval()


def _frozen(foundation: FoundationModel, plan: FreezePlan, frozen_layers: int) -> list[nn.Module]:
    if plan == "nothing":
        return []
    if plan == "all":
        return [foundation]
    embeddings = [foundation.facet_embedding, foundation.item_tower]
    if plan == "embeddings":
        return embeddings
    decoder = foundation.decoder
    if not isinstance(decoder, Decoder):
        raise DataError(
            "optim.freeze is 'lower_layers', and the release's decoder comes from another library, which doesn't say "
            "what its layers are; it must be nothing, embeddings or all"
        )
    blocks = decoder.blocks
    if frozen_layers > len(blocks):
        raise DataError(
            f"optim.frozen_layers is {frozen_layers}; the release's decoder has {len(blocks)} layers, at most so many "
            "can be frozen"
        )
    return [*embeddings, *blocks[:frozen_layers]]
