"""The job with all that it can learn: wired from the settings to the release, over a break too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundation.aggregation import AggregationConfig
from foundation.attention_tiles import AttentionConfig
from foundation.dataset import load_dataset
from foundation.decoder import DecoderConfig
from foundation.early_stopping import EarlyStoppingConfig
from foundation.errors import DataError
from foundation.model import FoundationConfig
from foundation.objectives.config import IntentConfig, MultiTokenConfig, ObjectiveConfig, SignalConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.release import load_release
from foundation.training_batches import BatchConfig
from foundation.window import WindowConfig

HEADS = ("genres", "duration", "next.device", "next.gap")
ATTENTION = AttentionConfig("prefix", window=6, prefix=2)
MODELS = {
    "plain": FoundationConfig(
        DecoderConfig(width=8, dropout=0.2, attention=ATTENTION),
        WindowConfig(20, 5),
        AggregationConfig("attention", num_recent=3),
    ),
    "gated": FoundationConfig(
        DecoderConfig(width=8, block="gated"), WindowConfig(20, 5), AggregationConfig("mean", layers="mix")
    ),
    "hstu": FoundationConfig(DecoderConfig(width=8, block="hstu"), WindowConfig(20, 5)),
}
LEARNED = {
    "plain": ObjectiveConfig(
        multi_token=MultiTokenConfig(4, half_life=3.0, half_life_unit="events", normalise=True),
        layer_weight=0.5,
        heads=HEADS,
        intent=IntentConfig("device"),
        signal=SignalConfig("duration", scale=0.001, missing=1.0),
    ),
    "gated": ObjectiveConfig(
        softmax="sampled", negatives="mixed", num_negatives=32, log_q=True, layer_weight=0.5, heads=HEADS
    ),
    "hstu": ObjectiveConfig(intent=IntentConfig("genres"), heads=HEADS),
}


def _config(data: Path, out: Path, block: str) -> PretrainConfig:
    return PretrainConfig(
        data,
        out,
        epochs=3,
        model=MODELS[block],
        objective=LEARNED[block],
        batch=BatchConfig(300, latest_share=0.3, progressive=(5, 10, 20)),
        early_stopping=EarlyStoppingConfig(1, "loss"),
    )


@pytest.mark.parametrize("block", MODELS)
def test_a_broken_run_releases_the_weights_of_an_unbroken_one(synthetic_folder, tmp_path, block):
    whole = pretrain(_config(synthetic_folder, tmp_path / "whole", block))
    config = _config(synthetic_folder, tmp_path / "broken", block)
    run = Pretraining(config, load_dataset(synthetic_folder))
    for step, batch in enumerate(run.batches(0)[:2]):
        run.trainer.step(step, run.tokenizer, run.events, batch)
    run.save(2)
    resumed = pretrain(config)
    assert resumed["validation_loss"] == whole["validation_loss"]
    first, second = (load_release(tmp_path / name / "release") for name in ("whole", "broken"))
    assert first.heads is not None
    assert second.heads is not None
    assert tuple(first.heads.names) == HEADS
    assert (first.model.intent is None) == (block == "gated")
    pairs = [(first.model, second.model), (first.heads, second.heads)]
    for one, other in ((a.state_dict(), b.state_dict()) for a, b in pairs):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_decoder_of_one_layer_takes_layer_wise_supervision(synthetic_folder, tmp_path):
    model = FoundationConfig(DecoderConfig(width=8, num_layers=1), WindowConfig(20, 5))
    objective = ObjectiveConfig(layer_weight=0.5)
    config = PretrainConfig(synthetic_folder, tmp_path, epochs=1, model=model, objective=objective)
    assert pretrain(config)["loss"] > 0


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (ObjectiveConfig(heads=("nonsense",)), "objective.heads names 'nonsense'"),
        (ObjectiveConfig(intent=IntentConfig("nonsense")), "objective.intent.label names 'nonsense'"),
        (ObjectiveConfig(signal=SignalConfig("device")), "objective.signal.facet is 'device'"),
        (
            ObjectiveConfig(signal=SignalConfig("duration", "mask", threshold=1e9)),
            r"objective.signal gives all \d+ training events a weight of 0",
        ),
    ],
)
def test_an_objective_that_the_data_refuse_binds_no_later_start(synthetic_folder, tmp_path, objective, named):
    out = tmp_path / "run"
    model = FoundationConfig(DecoderConfig(width=8, num_layers=1), WindowConfig(20, 5))
    with pytest.raises(DataError, match=named):
        pretrain(PretrainConfig(synthetic_folder, out, epochs=1, model=model, objective=objective))
    assert not out.exists()
    pretrain(PretrainConfig(synthetic_folder, out, epochs=1, model=model))
