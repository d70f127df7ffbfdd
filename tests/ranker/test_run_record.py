"""Starts that are refused: other tasks or labels in a run's folder, and more processes than requests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch.distributed as dist

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.release import load_release
from ranker.arches.interaction import InteractionConfig
from ranker.cotrain import cotrain
from ranker.model import RankerConfig
from ranker.requests.request import RequestConfig
from ranker.training.cotraining import CotrainConfig, Cotraining
from ranker.training.sharding import process_group


def short_run(data: Path, release: Path, out: Path) -> CotrainConfig:
    interaction = InteractionConfig(num_dots=2, dot_width=16, hidden_widths=(8,))
    return CotrainConfig(
        data,
        release,
        out,
        epochs=1,
        ranker=RankerConfig("pooled", embedding_dim=4, interaction=interaction),
        requests=RequestConfig(per_profile=1),
    )


def refusal(config: CotrainConfig) -> str:
    """What a second start says, in one line."""
    with pytest.raises(DataError) as raised:
        cotrain(config)
    message = str(raised.value)
    assert message.startswith(str(config.out / "run.json"))
    assert "\n" not in message
    return message


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a dataset, to be changed."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "data"))


@pytest.mark.parametrize("data", ["event_task_folder"], indirect=True)
def test_a_changed_task_is_refused(data, release_folder, tmp_path) -> None:
    config = short_run(data, release_folder, tmp_path / "run")
    with process_group():
        cotrain(config)
        schema = data / "schema.toml"
        text = schema.read_text(encoding="utf-8")
        schema.write_text(text.replace("at_least = 1800", "at_least = 3600"), encoding="utf-8")
        assert "tasks.2.at_least was 1800.0 when this run started and is 3600.0 now" in refusal(config)
        schema.write_text(text, encoding="utf-8")
        cotrain(config)


@pytest.mark.parametrize("data", ["synthetic_folder"], indirect=True)
def test_changed_or_missing_logged_requests_are_refused(data, release_folder, tmp_path) -> None:
    config, logged = short_run(data, release_folder, tmp_path / "run"), data / "requests.parquet"
    table = pl.read_parquet(logged)
    with process_group():
        logged.unlink()
        with pytest.raises(DataError, match=r"requests\.parquet: not found"):
            cotrain(config)
        table.write_parquet(logged)
        cotrain(config)
        table.with_columns(pl.col("label_watch").list.eval(1 - pl.element())).write_parquet(logged)
        assert "requests.parquet was" in refusal(config)


def test_fewer_requests_in_a_batch_than_processes_are_refused(
    event_task_folder, release_folder, tmp_path, monkeypatch
) -> None:
    config = replace(short_run(event_task_folder, release_folder, tmp_path), requests_per_batch=2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(
        DataError, match="requests_per_batch is 2; it must be at least the number of processes, 3"
    ):
        Cotraining(config, load_dataset(event_task_folder), load_release(release_folder))
