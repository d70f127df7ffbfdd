"""The explicit swap of reference layers for fused ones, at export.

    profile.tower.foundation.decoder    the decoder over a request's tokens             marquee::decoder_step
    candidate.crossed.decoder           its top layers over the request's candidates    marquee::decoder_step
    candidate.interaction               from item rows to logits                        marquee::score_candidates
    candidate.interaction.profile       what it reads of the profile's vector           marquee::linear
    profile.tower.foundation.facet_embedding    a token's facets, and its item          marquee::embed_tokens
    profile.tower.sparse                between the decoder's vector and what is dense  marquee::profile_vector
    *.sparse                            other embeddings of id columns                  marquee::pool_bags

What has no fused form stays as the ranker has it, and the report says why. Of an interaction that stays, the first
layer and the dot products have operators of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from foundation.decoder import Decoder
from ranker.arches.candidate_features import CandidateFeatureArch
from ranker.arches.interaction import DotProducts, FirstLayer, Interaction
from ranker.arches.last_token_tower import LastTokenTower
from ranker.arches.profile_tower import DecoderTower, PooledTower
from ranker.arches.sparse import PaddedSparseArch
from serving.fused_bags import FusedBags, FusedCandidateFeatures, FusedFacets
from serving.fused_candidates import FusedCandidates
from serving.fused_decoder import FusedDecoder
from serving.fused_tower import FusedTower
from serving.kernels.interaction import ops
from serving.no_fused_form import NoFusedForm
from serving.split import Halves

DECODER_STEP, SCORE_CANDIDATES = "marquee::decoder_step", "marquee::score_candidates"
FIRST_LAYER, LINEAR = "marquee::interaction_first_layer", "marquee::linear"
POOL_BAGS = "marquee::pool_bags"
EMBED_TOKENS, PROFILE_VECTOR = "marquee::embed_tokens", "marquee::profile_vector"


@dataclass(frozen=True)
class Kernels:
    """What runs in the place of which submodule of the two halves, and what stays as it was.

    Attributes:
        fused: operator by the name of the submodule.
        not_fused: why there is none, by name.
    """

    fused: dict[str, str] = field(default_factory=dict)
    not_fused: dict[str, str] = field(default_factory=dict)


class FusedFirstLayer(nn.Module):
    """`ranker.arches.interaction.FirstLayer` by the fused operator; it has no parameters either."""

    def forward(self, x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        """See `ranker.arches.interaction.interaction_first_layer`."""
        return ops.interaction_first_layer(x, e, p, q, w, offsets)


class FusedDotProducts(nn.Module):
    """`ranker.arches.interaction.DotProducts` by the same operator: `d = relu(d) - relu(-d)`, which is exact."""

    def forward(self, e: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
        """See `ranker.arches.interaction.dot_products`."""
        num_requests, num_dots = q.shape[:2]
        identity = torch.eye(num_dots, dtype=q.dtype, device=q.device)
        nothing_C, nothing_B = e.new_zeros(e.shape[0], 2 * num_dots), q.new_zeros(num_requests, 2 * num_dots)
        both_signs = torch.cat((identity, -identity), dim=1)
        sides = ops.interaction_first_layer(nothing_C, e, nothing_B, q, both_signs, offsets)
        return sides[:, :num_dots] - sides[:, num_dots:]


OF_INTERACTION: dict[type[nn.Module], type[nn.Module]] = {
    FirstLayer: FusedFirstLayer,
    DotProducts: FusedDotProducts,
}


def fuse(halves: Halves) -> Kernels:
    """Swap every part that has a fused form, in place; what it replaces is gone, weights and all.

    Returns:
        what was swapped, and why the rest was not.
    """
    both = nn.ModuleDict({"profile": halves.profile, "candidate": halves.candidate})
    kernels = Kernels()

    def swap(name: str, operator: str, fused_form: Callable[[], nn.Module]) -> None:
        try:
            both.set_submodule(name, fused_form())
        except NoFusedForm as reason:
            kernels.not_fused[name] = str(reason)
        else:
            kernels.fused[name] = operator

    tower, crossed, interaction = halves.profile.tower, halves.candidate.crossed, halves.candidate.interaction
    if isinstance(tower, PooledTower):
        kernels.not_fused["profile.tower"] = "it has no decoder"
    else:
        swap("profile.tower.foundation.decoder", DECODER_STEP, lambda: _fused_tower(tower))
        if crossed is not None:
            swap("candidate.crossed.decoder", DECODER_STEP, lambda: _fused(crossed.decoder, tower))
    if isinstance(interaction, Interaction):
        swap("candidate.interaction", SCORE_CANDIDATES, lambda: FusedCandidates(interaction))
        if "candidate.interaction" in kernels.fused:
            kernels.fused["candidate.interaction.profile"] = LINEAR
    for name, child in list(both.named_modules()):
        if type(child) in OF_INTERACTION:
            swap(name, FIRST_LAYER, OF_INTERACTION[type(child)])
        elif isinstance(child, PaddedSparseArch):
            swap(name, POOL_BAGS, partial(FusedBags.from_sparse, child))
    if "candidate.features.sparse" in kernels.fused:
        features = halves.candidate.features
        assert isinstance(features, CandidateFeatureArch)
        both.set_submodule("candidate.features", FusedCandidateFeatures(features))
    if not isinstance(tower, PooledTower):
        facets = tower.foundation.facet_embedding
        swap("profile.tower.foundation.facet_embedding", POOL_BAGS, lambda: FusedFacets(facets))
    if isinstance(tower, LastTokenTower) and "profile.tower.foundation.decoder" in kernels.fused:
        both.set_submodule("profile.tower", FusedTower(tower))
        kernels.fused["profile.tower.sparse"] = PROFILE_VECTOR
        if tower.foundation.age_column is None:
            kernels.fused["profile.tower.foundation.facet_embedding"] = EMBED_TOKENS
    return kernels


def _fused_tower(tower: DecoderTower | LastTokenTower) -> FusedDecoder:
    if isinstance(tower, DecoderTower) and tower.reads_every_layer:
        raise NoFusedForm("the profile's vector is made of hidden states below the top layer too")
    return _fused(tower.foundation.decoder, tower)


def _fused(decoder: nn.Module, tower: DecoderTower | LastTokenTower) -> FusedDecoder:
    if not isinstance(decoder, Decoder):
        raise NoFusedForm("the decoder is another library's")
    # The request's own token follows a whole window, and a candidate follows that.
    return FusedDecoder(decoder, num_positions=tower.foundation.config.window.window + 2)
