"""Gradients of the ranker's losses reach every parameter of the foundation model that isn't frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foundation.aggregation import AggregationConfig
from foundation.model import FoundationModel
from foundation.objectives.heads import build_heads
from ranker.arches.profile_tower import DecoderTower
from ranker.assembly import assemble_ranker
from ranker.model import RankerConfig
from ranker.training.freezing import FreezePlan, freeze
from ranker.training.losses import LossConfig, RankerWithLoss
from ranker.training.targets import HeadLabels, targets

TASK_LOSSES, ALL_LOSSES = ("watch", "like"), ("watch", "like", "next_item")


@pytest.fixture
def make_model(synthetic_dataset, release, make_assembly):
    """Makes a ranker on a foundation model of other blocks or aggregation."""

    def make(block: str = "plain", aggregation: AggregationConfig | None = None, crossing_layers: int = 0):
        torch.manual_seed(0)
        old = release.model
        config = replace(
            old.config,
            decoder=replace(old.config.decoder, block=block),
            aggregation=aggregation or AggregationConfig(),
        )
        tower = old.item_tower
        model = FoundationModel(
            config,
            release.tokenizer.num_facet_rows,
            len(tower.feature_embedding.weight),
            tower.facts(),
            old.age_column,
        )
        sizes = RankerConfig(
            embedding_dim=4,
            item_embedding_dim=8,
            interaction=make_assembly("decoder").model.config.interaction,
            crossing_layers=crossing_layers,
        )
        return assemble_ranker(sizes, synthetic_dataset, release._replace(model=model), TASK_LOSSES)

    return make


def without_gradient(model: RankerWithLoss, inputs, told, names: tuple[str, ...]) -> set[str]:
    """Trained parameters of the foundation model that these parts of the loss don't reach."""
    model.train()
    losses = model(inputs, told)
    torch.stack([losses.sums[model.names.index(name)] for name in names]).sum().backward()
    tower = model.ranker.profile_tower
    assert isinstance(tower, DecoderTower)
    return {
        name
        for name, parameter in tower.foundation.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    }


@pytest.mark.parametrize("losses", [("watch",), ("like",), ("next_item",)])
@pytest.mark.parametrize("block", ["plain", "gated"])
def test_each_loss_by_itself_reaches_all_of_the_decoder(make_model, make_inputs, block, losses) -> None:
    assembly = make_model(block)
    inputs, rows = make_inputs(assembly.features)
    model = RankerWithLoss(assembly.model, LossConfig())
    assert without_gradient(model, inputs, targets(rows, 16), losses) == set()


@pytest.mark.parametrize("losses", [("watch_crossing",), ("like_crossing",)])
@pytest.mark.parametrize("crossing_layers", [1, 2])
def test_crossing_by_itself_reaches_all_of_the_decoder(
    make_model, make_inputs, crossing_layers, losses
) -> None:
    assembly = make_model(crossing_layers=crossing_layers)
    inputs, rows = make_inputs(assembly.features)
    model = RankerWithLoss(assembly.model, LossConfig())
    assert model.names == ("watch", "like", "watch_crossing", "like_crossing", "next_item")
    assert without_gradient(model, inputs, targets(rows, 16), losses) == set()


@pytest.mark.parametrize(
    "aggregation",
    [AggregationConfig(layers="mix"), AggregationConfig(tokens="attention", num_recent=4)],
    ids=["mix", "attention"],
)
def test_gradients_reach_what_aggregates_layers_and_tokens(make_model, make_inputs, aggregation) -> None:
    assembly = make_model(aggregation=aggregation)
    inputs, rows = make_inputs(assembly.features)
    model = RankerWithLoss(assembly.model, LossConfig())
    assert without_gradient(model, inputs, targets(rows, 16), TASK_LOSSES) == set()


@pytest.mark.parametrize(("plan", "layers"), [("embeddings", 0), ("lower_layers", 1), ("lower_layers", 2)])
def test_gradients_reach_what_a_plan_leaves(make_model, make_inputs, plan: FreezePlan, layers) -> None:
    assembly = make_model()
    inputs, rows = make_inputs(assembly.features)
    freeze(assembly.model, plan, layers)
    model = RankerWithLoss(assembly.model, LossConfig())
    assert without_gradient(model, inputs, targets(rows, 16), ALL_LOSSES) == set()
    tower = model.ranker.profile_tower
    assert isinstance(tower, DecoderTower)
    frozen = [each for each in tower.foundation.parameters() if not each.requires_grad]
    assert frozen
    assert all(each.grad is None for each in frozen)


def test_heads_of_the_release_reach_the_decoder_and_learn(make_model, make_inputs, release) -> None:
    heads = build_heads(["duration", "genres"], release.tokenizer, release.model.config.decoder.width)
    assert heads is not None
    assembly = make_model()
    inputs, rows = make_inputs(assembly.features)
    labels = HeadLabels(heads.labels, release.tokenizer, release.model.item_tower.feature_rows.numpy())
    model = RankerWithLoss(assembly.model, LossConfig(next_item_weight=0.2, head_weight=0.5), heads)
    assert model.names[-2:] == ("head.duration", "head.genres")
    assert model.weights == pytest.approx((1.0, 1.0, 0.2, 0.1, 0.1))
    told = targets(rows, 16, None, labels)
    missed = without_gradient(model, inputs, told, ("head.duration", "head.genres"))
    decoder = {f"decoder.{name}" for name, _ in release.model.decoder.named_parameters()}
    assert not missed & decoder
    assert all(each.grad is not None and each.grad.any() for each in heads.parameters())
