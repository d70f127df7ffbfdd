"""Freeze plans: what is frozen stays the same to the last byte, and costs no gradient."""

from __future__ import annotations

import pytest
import torch

from foundation.errors import DataError
from foundation.release import Release
from ranker.training.freezing import FreezePlan, freeze, is_frozen
from ranker.training.losses import LossConfig, RankerWithLoss
from ranker.training.optim import RankerOptimConfig
from ranker.training.sharding import process_group
from ranker.training.targets import targets
from ranker.training.trainer import RankerTrainer

EMBEDDINGS = ("facet_embedding.", "item_tower.")
INTERACTION = "interaction.candidate_projection.weight"


def is_expected_frozen(name: str, plan: str) -> bool:
    layers = ("decoder.blocks.0.",) if plan == "lower_layers" else ()
    return plan == "all" or (plan != "nothing" and name.startswith((*EMBEDDINGS, *layers)))


@pytest.mark.parametrize("plan", ["nothing", "embeddings", "lower_layers", "all"])
def test_what_is_frozen_stays_the_same_to_the_last_byte_and_the_rest_moves(
    make_assembly, make_inputs, release: Release, plan
) -> None:
    assembly = make_assembly("decoder", crossing_layers=1)
    inputs, rows = make_inputs(assembly.features)
    optim = RankerOptimConfig(
        learning_rate=1e-2, decoder_warmup_steps=0, freeze=plan, frozen_layers=int(plan == "lower_layers")
    )
    foundation = release.model
    interaction = assembly.model.state_dict()[INTERACTION].clone()
    before = {name: value.detach().clone() for name, value in foundation.named_parameters()}
    with process_group():
        trainer = RankerTrainer(assembly.model, optim, LossConfig(), None, num_steps=3, seed=0)
        for step in range(3):
            trainer.step(step, inputs, targets(rows, 16))
        assert ("next_item" in trainer.loss_names) == (plan != "all")
        state = trainer.ranker_state()
    assert state is not None
    moved = {
        name: not torch.equal(value, state[f"profile_tower.foundation.{name}"])
        for name, value in before.items()
    }
    assert moved == {name: not is_expected_frozen(name, plan) for name in before}
    assert not torch.equal(state[INTERACTION], interaction), "the rest of the ranker is trained"


def test_no_gradient_is_computed_where_all_is_frozen(make_assembly, make_inputs) -> None:
    assembly = make_assembly("decoder")
    model = assembly.model.train()
    inputs, _ = make_inputs(assembly.features)
    freeze(model, "all")
    assert is_frozen(model.profile_tower.foundation)
    encoding = model.encode(inputs.profile)
    assert encoding.hidden is not None
    assert not encoding.hidden.requires_grad
    assert not model.item_vectors().vectors.requires_grad
    assert encoding.vector.requires_grad, "its own sparse features are trained"
    assert RankerWithLoss(model, LossConfig()).names == ("watch", "like")


def test_no_gradient_passes_below_the_lowest_trained_layer(make_assembly, make_inputs) -> None:
    assembly = make_assembly("decoder")
    model = assembly.model.train()
    inputs, _ = make_inputs(assembly.features)
    freeze(model, "lower_layers", 1)
    seen = []
    blocks = model.profile_tower.foundation.decoder.blocks
    for block in blocks:
        block.register_forward_hook(lambda _module, _inputs, found: seen.append(found[0].requires_grad))
    model.encode(inputs.profile)
    assert seen == [False, True]


def test_a_frozen_foundation_drops_nothing_out(make_assembly, make_inputs) -> None:
    """It is the release's own model, not a noisy one."""
    assembly = make_assembly("decoder")
    inputs, rows = make_inputs(assembly.features)
    plans: list[tuple[FreezePlan, bool]] = [("embeddings", True), ("all", False)]
    with process_group():
        for plan, is_training in plans:
            model = make_assembly("decoder").model
            trainer = RankerTrainer(model, RankerOptimConfig(freeze=plan), LossConfig(), None, 1, 0)
            trainer.step(0, inputs, targets(rows, 16))
            assert model.profile_tower.foundation.training == is_training
            assert model.interaction.training


def test_more_layers_than_there_are_can_not_be_frozen(make_assembly) -> None:
    with pytest.raises(DataError, match=r"optim\.frozen_layers is 3; the release's decoder has 2 layers"):
        freeze(make_assembly("decoder").model, "lower_layers", 3)


def test_a_ranker_without_a_decoder_has_nothing_to_freeze(make_assembly) -> None:
    model = make_assembly("pooled").model
    freeze(model, "all")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"freeze": "some"}, "optim.freeze is 'some'; it must be one of nothing, embeddings"),
        ({"freeze": "lower_layers"}, "optim.frozen_layers is 0 with optim.freeze 'lower_layers'"),
        ({"freeze": "all", "frozen_layers": 2}, "optim.frozen_layers is 2 with optim.freeze 'all'"),
        ({"freeze": "lower_layers", "frozen_layers": -1}, "optim.frozen_layers is -1"),
    ],
)
def test_plans_that_make_no_sense_are_named(change, named) -> None:
    with pytest.raises(ValueError, match=named):
        RankerOptimConfig(**change)
