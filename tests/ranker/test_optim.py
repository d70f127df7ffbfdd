"""Learning rates by group: who belongs where, and how each warms up."""

from __future__ import annotations

import pytest
import torch

from foundation.objectives.heads import build_heads
from ranker.training.losses import LossConfig
from ranker.training.optim import OF_RELEASE, RankerOptimConfig
from ranker.training.sharding import process_group
from ranker.training.targets import HeadLabels, targets
from ranker.training.trainer import RankerTrainer


def test_each_group_warms_up_on_its_own() -> None:
    optim = RankerOptimConfig(
        learning_rate=1e-2,
        decoder_share=0.1,
        sparse_learning_rate=0.5,
        warmup_steps=4,
        decoder_warmup_steps=10,
    )
    first, fourth, tenth = (optim.rates(step, 1000) for step in (0, 3, 9))
    assert first == pytest.approx({"dense": 1e-2 / 4, "decoder": 1e-3 / 10, "tables": 0.5 / 4})
    assert fourth == pytest.approx({"dense": 1e-2, "decoder": 1e-3 * 4 / 10, "tables": 0.5})
    assert tenth["decoder"] == pytest.approx(1e-3)
    assert tenth["dense"] < 1e-2
    last = optim.rates(999, 1000)
    assert all(0 <= rate < 1e-4 for rate in last.values())


def test_the_foundation_model_and_its_heads_learn_slower_than_the_rest(
    make_assembly, make_inputs, release
) -> None:
    """AdamW's first step moves every weight that has a gradient by about its group's rate."""
    heads = build_heads(["duration"], release.tokenizer, release.model.config.decoder.width)
    assert heads is not None
    labels = HeadLabels(heads.labels, release.tokenizer, release.model.item_tower.feature_rows.numpy())
    assembly = make_assembly("decoder")
    inputs, rows = make_inputs(assembly.features)
    rate = 1e-3
    optim = RankerOptimConfig(learning_rate=rate, warmup_steps=0, decoder_warmup_steps=0)
    with process_group():
        trainer = RankerTrainer(assembly.model, optim, LossConfig(), heads, num_steps=10, seed=0)
        before = {name: value.detach().clone() for name, value in trainer._model.named_parameters()}
        trainer.step(0, inputs, targets(rows, 16, None, labels))
        after = dict(trainer._model.named_parameters())
        dense = trainer._optimizers._dense.keys()
        moved = {name: float((after[name].detach() - before[name]).abs().max()) for name in dense}
    of_release = {name: by for name, by in moved.items() if name.startswith(OF_RELEASE)}
    assert {"heads.project.weight", "ranker.profile_tower.foundation.facet_embedding.weight"} <= set(
        of_release
    )
    assert "ranker.interaction.candidate_projection.weight" in moved.keys() - of_release.keys()
    for name, by in moved.items():
        expected = rate * (0.1 if name in of_release else 1.0)
        assert by == pytest.approx(expected, rel=0.02), name


def test_what_is_frozen_has_no_optimizer_state(make_assembly) -> None:
    with process_group():
        trainer = RankerTrainer(
            make_assembly("decoder").model, RankerOptimConfig(freeze="all"), LossConfig(), None, 1, 0
        )
        dense = trainer.state()["optimizer"]["dense"]
    assert dense
    assert not any(name.startswith(OF_RELEASE) for name in dense)


def test_the_state_of_every_trained_weight_is_there_before_the_first_step(make_assembly) -> None:
    with process_group():
        trainer = RankerTrainer(make_assembly("decoder").model, RankerOptimConfig(), LossConfig(), None, 1, 0)
        dense = trainer.state()["optimizer"]["dense"]
    moments = dense["ranker.profile_tower.foundation.facet_embedding.weight"]
    assert torch.count_nonzero(moments["exp_avg"]) == 0


def test_a_warm_up_below_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"optim\.decoder_warmup_steps is -1"):
        RankerOptimConfig(decoder_warmup_steps=-1)
