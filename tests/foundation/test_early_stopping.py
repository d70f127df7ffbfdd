"""Early stopping: which epoch was best and when patience is lost; the release is the best epoch's, kill or no kill."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from foundation.decoder import DecoderConfig
from foundation.early_stopping import EarlyStoppingConfig, ValidationHistory
from foundation.learning_rate import OptimConfig
from foundation.manifest import file_hash
from foundation.model import FoundationConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.release import load_release
from foundation.training_batches import BatchConfig
from foundation.window import WindowConfig


def _history(patience: int, metric, values: list[float], epochs: int = 9) -> ValidationHistory:
    history = ValidationHistory(EarlyStoppingConfig(patience, metric), epochs)
    for value in values:
        history.add({metric: value})
    return history


@pytest.mark.parametrize(
    ("patience", "metric", "values", "best", "over"),
    [
        (2, "ndcg@10", [0.1, 0.3, 0.2], 1, False),
        (2, "ndcg@10", [0.1, 0.3, 0.2, 0.25], 1, True),
        (2, "ndcg@10", [0.1, 0.3, 0.2, 0.31], 3, False),
        (1, "ndcg@10", [0.3, 0.3], 0, True),
        (2, "loss", [4.0, 3.0, 3.5, 3.1], 1, True),
        (2, "loss", [math.nan, 4.0, math.nan], 1, False),
        (0, "ndcg@10", [0.9, 0.1, 0.1, 0.1], 0, False),
        (3, "loss", [2.0] + [3.0] * 8, 0, True),
    ],
)
def test_best_epoch_and_end(patience, metric, values, best, over):
    history = _history(patience, metric, values)
    assert history.best_epoch == best
    assert history.is_over == over
    assert history.released_epoch == (best if patience else len(values) - 1)


def test_nothing_is_over_before_it_began_and_everything_after_the_last_epoch():
    assert not _history(1, "loss", []).is_over
    assert _history(0, "loss", [1.0, 1.0], epochs=2).is_over


def test_a_history_read_back_decides_the_same():
    history = _history(2, "loss", [4.0, 3.0, 3.5, 3.1])
    again = _history(2, "loss", [])
    for name, tensor in again.state().items():
        tensor.copy_(history.state()[name])
    assert again.is_over
    assert again.best_epoch == 1
    assert again.figures(3) == {"loss": 3.1}


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="patience is -1"):
        EarlyStoppingConfig(-1)
    with pytest.raises(ValueError, match="metric is 'auc'"):
        EarlyStoppingConfig(1, "auc")  # type: ignore[arg-type]


def _config(data: Path, out: Path, patience: int = 2) -> PretrainConfig:
    return PretrainConfig(
        data,
        out,
        epochs=30,
        checkpoint_every=3,
        model=FoundationConfig(DecoderConfig(width=16, num_layers=1), window=WindowConfig(20, 5)),
        optim=OptimConfig(0.05, warmup_steps=4),
        batch=BatchConfig(300),
        early_stopping=EarlyStoppingConfig(patience, "loss"),
    )


class _Killed(BaseException):
    pass


def test_a_run_that_overfits_stops_and_releases_its_best_epoch(synthetic_folder, tmp_path, monkeypatch):
    unbroken = pretrain(_config(synthetic_folder, tmp_path / "unbroken"))
    assert unbroken["epochs"] == unbroken["best_epoch"] + 2 < 30
    # Killed again and again: in the middle of epochs, between validation and its checkpoint, before the release.
    killed = _config(synthetic_folder, tmp_path / "killed")
    end_epoch = Pretraining.end_epoch

    def killed_after(_run):
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "end_epoch", killed_after)
        with pytest.raises(_Killed):
            pretrain(killed)
    ends = []

    def killed_at_the_third(run):
        figures = end_epoch(run)
        ends.append(figures)
        if len(ends) == 3:
            raise _Killed
        return figures

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "end_epoch", killed_at_the_third)
        with pytest.raises(_Killed):
            pretrain(killed)
    with monkeypatch.context() as patch:
        patch.setattr("foundation.pretrain.save_release", killed_after_save)
        with pytest.raises(_Killed):
            pretrain(killed)
    resumed = pretrain(killed)
    timed = ("release", "training_s", "tokens_per_s")
    assert {k: v for k, v in resumed.items() if k not in timed} == {
        k: v for k, v in unbroken.items() if k not in timed
    }
    weights = [
        file_hash(tmp_path / name / "release" / "model.safetensors") for name in ("killed", "unbroken")
    ]
    assert weights[0] == weights[1]


def killed_after_save(*_):
    raise _Killed


def test_the_release_holds_the_weights_of_the_best_epoch(synthetic_folder, synthetic_dataset, tmp_path):
    document = pretrain(_config(synthetic_folder, tmp_path / "run"))
    released = load_release(tmp_path / "run" / "release").model
    # The same run by hand, up to its best epoch.
    run = Pretraining(_config(synthetic_folder, tmp_path / "by-hand"), synthetic_dataset)
    step = 0
    for epoch in range(document["best_epoch"]):
        for batch in run.batches(epoch):
            run.trainer.step(step, run.tokenizer, run.events, batch)
            step += 1
    for name, weight in run.trainer.model.state_dict().items():
        assert torch.equal(weight, released.state_dict()[name]), name
