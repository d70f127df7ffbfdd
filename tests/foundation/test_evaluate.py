"""Evaluation as a command: figures, table, JSON, and the errors a user meets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.decoder import DecoderConfig
from foundation.evaluate import EvaluateConfig, evaluate, table
from foundation.learning_rate import OptimConfig
from foundation.model import FoundationConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.release import ReleaseError
from foundation.training_batches import BatchConfig
from foundation.window import WindowConfig


@pytest.fixture(scope="module")
def release(synthetic_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    pretrain(
        PretrainConfig(
            synthetic_folder,
            out,
            epochs=2,
            model=FoundationConfig(DecoderConfig(width=16, num_layers=1), WindowConfig(20, 5)),
            optim=OptimConfig(3e-3),
            batch=BatchConfig(300),
        )
    )
    return out / "release"


def test_figures_are_whole_and_in_range(release, synthetic_folder, synthetic_dataset):
    figures = evaluate(EvaluateConfig(release, synthetic_folder))
    for prefix in ("", "popularity_"):
        hit_rates = [figures[f"{prefix}hr@{k}"] for k in (1, 10, 50, 200)]
        assert hit_rates == sorted(hit_rates)
        assert hit_rates[-1] == 1.0  # there are fewer items than 200
        assert all(figures[f"{prefix}ndcg@{k}"] <= figures[f"{prefix}hr@{k}"] for k in (1, 10, 50, 200))
        assert 0 < figures[f"{prefix}mrr"] <= 1
    assert figures["items"] == synthetic_dataset.num_items
    assert figures["profiles"] == len(synthetic_dataset.split.test)
    assert "ties in item row order" in figures["protocol"]
    assert evaluate(EvaluateConfig(release, synthetic_folder)) == figures
    assert "popularity" in table(figures)
    assert "ndcg@200" in table(figures)


def test_the_command_ends_with_one_json_document(release, synthetic_folder):
    plain, with_table = (_run(release, synthetic_folder, *options) for options in (["--json"], []))
    assert plain.returncode == with_table.returncode == 0, plain.stderr + with_table.stderr
    assert len(plain.stdout.splitlines()) == 1 < len(with_table.stdout.splitlines())
    figures = json.loads(plain.stdout)
    assert json.loads(with_table.stdout.splitlines()[-1]) == figures
    expected = {
        "hr@10",
        "ndcg@10",
        "mrr",
        "popularity_hr@10",
        "popularity_ndcg@10",
        "items",
        "profiles",
        "protocol",
    }
    assert expected <= figures.keys()


def test_a_changed_release_is_one_line_and_exit_2(release, synthetic_folder, tmp_path):
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    (copy / "vocab.json").write_text("{}")
    process = _run(copy, synthetic_folder)
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 1
    assert "vocab.json: sha256" in process.stderr


def test_another_split_is_refused(release, synthetic_folder, tmp_path):
    data = Path(shutil.copytree(synthetic_folder, tmp_path / "data"))
    split = json.loads((data / "split.json").read_text())
    split["test"], split["validation"] = split["test"][:-1], [*split["validation"], split["test"][-1]]
    (data / "split.json").write_text(json.dumps(split))
    with pytest.raises(ReleaseError, match=r"trained_on.cut.split_hash"):
        evaluate(EvaluateConfig(release, data))


def _run(release: Path, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "foundation.evaluate",
        "--release",
        str(release),
        "--data",
        str(data),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
