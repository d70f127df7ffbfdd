"""The ranker that the seeded workloads are asked of: real modules, random weights, logits that are spread.

Shapes: I item rows, D decoder width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from foundation.decoder import DecoderConfig
from foundation.item_tower import ItemFacts
from foundation.model import FoundationConfig, FoundationModel
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import WindowConfig
from ranker.arches.interaction import InteractionConfig
from ranker.features.candidate_features import CandidateFields
from ranker.features.columns import SparseField
from ranker.features.inputs import FeatureFields, ProfileFields
from ranker.features.item_features import ItemFeatures
from ranker.model import Ranker, RankerConfig

TASKS = ("watch", "like")
FACET_COLUMNS, FACET_ROWS = 6, 400
"""Of a token: hour of week, date, gap, device, action, duration; the joint table has a few hundred rows."""
PROFILE_FIELDS = ProfileFields(
    (SparseField("request_context", 3, 200, "sum"), SparseField("region", 1, 50)), num_dense=2
)
CANDIDATE_FIELDS = CandidateFields(
    (SparseField("days_since_shown", 1, 17), SparseField("retrieved_by", 1, 12)), num_dense=1
)
"""A number, bucketed and as it is, and a category: of the candidate in one request, so that no table can hold them."""
GENRES, DECADES = 20, 17
_METADATA_COLUMNS = 3
# Found by trial: with it the logits of `reference` have a standard deviation of about 1.
_HEAD_GAIN = 1.0


def build_ranker(width: int, crossing_layers: int, num_items: int, window: int) -> Ranker:
    """A ranker with the default configuration, but of this width and with hidden widths of 2 and 1 times that.

    Four layers of `width / 64` heads (at least one), eight dot products as wide as the decoder, two tasks, two features
    of a candidate in its request. The caller seeds: all weights come from torch's generator.

    Args:
        width: D; 256 in every workload, less in tests.
        crossing_layers: m; 0: vector mode.
        num_items: of the catalogue; I is two more.
        window: events of a full history.
    """
    num_rows = num_items + FIRST_KNOWN
    facts = ItemFacts(
        torch.randint(1, GENRES + DECADES, (num_rows, _METADATA_COLUMNS)),
        torch.randint(0, 5_000, (num_rows,)),
        torch.zeros(num_rows, dtype=torch.int64),
        torch.empty(num_rows, 0),
    )
    decoder = DecoderConfig(width=width, num_layers=4, num_heads=max(1, width // 64))
    config = FoundationConfig(decoder=decoder, window=WindowConfig(window, min(window, 40)))
    foundation = FoundationModel(config, FACET_ROWS, GENRES + DECADES, facts)
    interaction = InteractionConfig(dot_width=width, hidden_widths=(2 * width, width))
    ranker = Ranker(
        RankerConfig(interaction=interaction, crossing_layers=crossing_layers),
        FeatureFields(PROFILE_FIELDS, CANDIDATE_FIELDS),
        _item_features(num_rows),
        TASKS,
        foundation,
    )
    _spread(ranker)
    return ranker.eval().requires_grad_(False)


def _item_features(num_rows: int) -> ItemFeatures:
    """Id, genres and release year, and popularity and year as numbers."""
    genres = torch.randint(-1, GENRES, (num_rows, _METADATA_COLUMNS))
    columns = torch.cat(
        (torch.arange(num_rows)[:, None], genres, torch.randint(0, DECADES, (num_rows, 1))), 1
    )
    fields = (
        SparseField("item_id", 1, num_rows, of_items=True),
        SparseField("genres", _METADATA_COLUMNS, GENRES),
        SparseField("year", 1, DECADES),
    )
    return ItemFeatures(fields, columns, torch.randn(num_rows, 2))


@torch.no_grad()
def _spread(ranker: Ranker) -> None:
    """Weights as a trained ranker's in size: everything a logit is made of moves it, and attention is not uniform.

    At initialisation a decoder of width 256 attends nearly uniformly and logits are nearly equal: a program that gets
    something wrong would pass for right.
    """
    for name, module in ranker.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.weight.mul_(10)
        elif isinstance(module, nn.LayerNorm):
            module.weight.add_(torch.randn_like(module.weight), alpha=0.1)
            module.bias.normal_(std=0.1)
        elif isinstance(module, nn.Linear) and ".decoder." in name:
            module.weight.mul_(3)
            if module.bias is not None:
                module.bias.normal_(std=0.1)  # an exporter would leave out a bias of zeros
    interaction = ranker.interaction
    for module in (
        interaction.candidate_projection,
        interaction.profile_projection,
        interaction.feature_projection,
    ):
        assert module is not None
        module.weight.normal_(std=0.5)  # they read unit vectors, and features of about one
    if interaction.crossing_projection is not None:
        interaction.crossing_projection.weight.normal_(
            std=1 / math.sqrt(interaction.crossing_projection.in_features)
        )
    assert interaction.dot_weights is not None
    interaction.dot_weights.normal_(std=1 / math.sqrt(interaction.num_dots))
    for module in interaction.mlp:
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=math.sqrt(2 / module.in_features))
    assert isinstance(interaction.heads, nn.Linear)
    interaction.heads.weight.normal_(std=_HEAD_GAIN / math.sqrt(interaction.heads.in_features))
