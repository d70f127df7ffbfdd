"""A score depends on its request and its candidate, whatever the ranker is made of: on nothing else in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ranker.arches.interaction import InteractionConfig
from ranker.arches.taps import ProfileConfig
from ranker.assembly import Assembly
from ranker.features.candidate_features import CandidateFeature, known_features
from ranker.model import Ranker, RankerInputs

TOLERANCE = 1e-6
"""Of max|difference| / max(1, max|logit|): a few roundings, since the sizes of matrix products differ."""
EVENTS = (3, 11, 0, 5)
CROSS = InteractionConfig(3, 20, (24, 12), cross_layers=2, cross_width=6, cross_rank=3, head_widths=(8,))
FEATURES = known_features(
    (
        CandidateFeature("retrieval", "numeric", "scores", boundaries=(0.25, 0.5, 0.75)),
        CandidateFeature("row", "categorical", "rows"),
    ),
    {"retrieval": np.linspace(0, 1, 9, dtype=np.float32), "row": np.arange(4)},
)
CONFIGS: dict[str, dict[str, Any]] = {
    "decoder": {"tower": "decoder"},
    "pooled": {"tower": "pooled"},
    "decoder, cross network, heads, dense": {
        "tower": "decoder",
        "interaction": CROSS,
        "dense_widths": (6, 5),
    },
    "pooled, cross network, heads, dense": {
        "tower": "pooled",
        "candidates": FEATURES,
        "interaction": CROSS,
        "dense_widths": (6, 5),
    },
    "taps, each of the last token": {"tower": "decoder", "profile": ProfileConfig((1, 2))},
    "taps, mixed, attention": {
        "tower": "decoder",
        "profile": ProfileConfig((1, 2), mix_taps=True, tap_tokens="attention", tap_recent=4),
    },
    "crossing": {"tower": "decoder", "crossing_layers": 1},
    "crossing, all options": {
        "tower": "decoder",
        "candidates": FEATURES,
        "crossing_layers": 2,
        "interaction": CROSS,
        "dense_widths": (6,),
        "profile": ProfileConfig((1,), tap_tokens="mean", tap_recent=4),
    },
}


def stir(model: Ranker) -> None:
    """Weights away from their start, where some of them are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


@pytest.fixture(params=CONFIGS, ids=str)
def rank(request, make_assembly, synthetic_dataset, raw_histories) -> Callable[..., Tensor]:
    """Logits of chosen requests and their candidates, by the parametrised ranker."""
    assembly: Assembly = make_assembly(**CONFIGS[request.param])
    stir(assembly.model)
    longest = torch.tensor(synthetic_dataset.events.offsets).diff().argsort(descending=True, stable=True)

    @torch.no_grad()
    def logits(requests: list[int], candidates: list[list[int]]) -> Tensor:
        histories = raw_histories(
            synthetic_dataset, longest[requests].tolist(), [EVENTS[number] for number in requests]
        )
        rows = np.array([row for each in candidates for row in each])
        inputs = assembly.features.candidate_inputs(
            synthetic_dataset.catalogue.item_id[rows],
            np.array([len(each) for each in candidates]),
            {"retrieval": rows % 7 / 7, "row": rows % 5},
        )
        return assembly.model(RankerInputs(assembly.features.profile_inputs(histories), inputs))

    return logits


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    candidates=st.lists(st.lists(st.integers(0, 90), max_size=9), min_size=4, max_size=4).filter(any),
    order=st.randoms(use_true_random=False),
)
def test_a_score_is_the_same_whatever_else_is_scored(rank, candidates: list[list[int]], order) -> None:
    together = rank([0, 1, 2, 3], candidates).split([len(each) for each in candidates])
    requests = order.sample(range(4), 4)
    shuffled = [order.sample(range(len(candidates[b])), len(candidates[b])) for b in requests]
    rows = [[candidates[b][at] for at in places] for b, places in zip(requests, shuffled, strict=True)]
    in_another_order = rank(requests, rows).split([len(each) for each in rows])
    for b, places, found in zip(requests, shuffled, in_another_order, strict=True):
        if places:
            assert close(found, together[b][places])
            alone = rank([b], [[candidates[b][places[0]]]])
            assert close(alone[0], together[b][places[0]])


def test_scores_are_worth_comparing(rank) -> None:
    logits = rank([0, 1], [[4, 9, 30], [4, 9, 30]])
    assert logits[:3].std(dim=0).min() > 3e-4
    assert (logits[:3] - logits[3:]).abs().max() > 1e-3


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nothing_is_normalised_over_the_batch(make_assembly, config) -> None:
    modules = list(make_assembly(**config).model.modules())
    assert len(modules) > 10
    assert not [module for module in modules if isinstance(module, _NormBase)]
