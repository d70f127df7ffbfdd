"""Starts that are refused: other tasks or labels in a run's folder, and more processes than requests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch.distributed as dist

from foundation.errors import DataError
from foundation.release import load_release
from ranker.arches.interaction import InteractionConfig
from ranker.cotrain import cotrain
from ranker.model import RankerConfig
from ranker.requests.request import RequestConfig
from ranker.rows.folder import RowFolder
from ranker.rows.job import RowsConfig, make_rows
from ranker.training.cotrain_config import CotrainConfig
from ranker.training.cotraining import Cotraining
from ranker.training.sharding import process_group


def short_run(data: Path, release: Path, out: Path) -> CotrainConfig:
    interaction = InteractionConfig(num_dots=2, dot_width=16, hidden_widths=(8,))
    return CotrainConfig(
        release,
        out,
        data=data,
        epochs=1,
        draws=1,
        ranker=RankerConfig("pooled", embedding_dim=4, interaction=interaction),
        requests=RequestConfig(per_profile=1),
    )


def refusal(config: CotrainConfig, file: str) -> str:
    """What a second start says of a file in its folder, in one line."""
    with pytest.raises(DataError) as raised:
        cotrain(config)
    message = str(raised.value)
    assert message.startswith(str(config.out / file))
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
        assert "rows are there already, made with tasks = " in refusal(config, "rows/manifest.json")
        schema.write_text(text, encoding="utf-8")
        cotrain(config)


@pytest.mark.parametrize("data", ["synthetic_folder"], indirect=True)
def test_changed_or_missing_logged_requests_are_refused(data, release_folder, tmp_path) -> None:
    config, logged = short_run(data, release_folder, tmp_path / "run"), data / "requests.parquet"
    table = pl.read_parquet(logged)
    with process_group():
        logged.unlink()
        with pytest.raises(DataError, match=r"requests\.parquet"):
            cotrain(config)
        table.write_parquet(logged)
        cotrain(config)
        table.with_columns(pl.col("label_watch").list.eval(1 - pl.element())).write_parquet(logged)
        assert "rows are there already, made with logs = " in refusal(config, "rows/manifest.json")


def test_other_rows_in_a_runs_folder_are_refused(event_task_folder, release_folder, tmp_path) -> None:
    """Rows that differ by the label of a task: the task is named."""
    config = short_run(event_task_folder, release_folder, tmp_path / "run")
    data = Path(shutil.copytree(event_task_folder, tmp_path / "data"))
    folders = [tmp_path / "rows", tmp_path / "others"]
    make_rows(RowsConfig(data, release_folder, folders[0], draws=1))
    schema = data / "schema.toml"
    text = schema.read_text(encoding="utf-8")
    schema.write_text(text.replace("at_least = 1800", "at_least = 3600"), encoding="utf-8")
    make_rows(RowsConfig(data, release_folder, folders[1], draws=1))
    with process_group():
        cotrain(replace(config, data=None, draws=CotrainConfig.draws, rows=folders[0]))
        said = refusal(replace(config, data=None, draws=CotrainConfig.draws, rows=folders[1]), "run.json")
    assert " was " in said


def test_fewer_requests_in_a_batch_than_processes_are_refused(
    rows_folder, release_folder, tmp_path, monkeypatch
) -> None:
    config = replace(
        short_run(rows_folder, release_folder, tmp_path),
        data=None,
        draws=CotrainConfig.draws,
        rows=rows_folder,
        requests_per_batch=2,
    )
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(
        DataError, match="requests_per_batch is 2; it must be at least the number of processes, 3"
    ):
        Cotraining(config, RowFolder.open(rows_folder), load_release(release_folder))
