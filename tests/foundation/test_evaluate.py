"""Evaluation as a command: figures, table, JSON, and the errors a user meets."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.evaluate import EvaluateConfig, evaluate, table
from foundation.learning_rate import OptimConfig
from foundation.model import FoundationConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.protocol import ProtocolName
from foundation.release import ReleaseError
from foundation.schema import load_schema
from foundation.training_batches import BatchConfig
from foundation.window import WindowConfig


def _pretrained(data: Path, out: Path, protocol: ProtocolName) -> Path:
    pretrain(
        PretrainConfig(
            data,
            out,
            protocol=protocol,
            epochs=2,
            model=FoundationConfig(DecoderConfig(width=16, num_layers=1), window=WindowConfig(20, 5)),
            optim=OptimConfig(3e-3),
            batch=BatchConfig(300),
        )
    )
    return out / "release"


@pytest.fixture(scope="module")
def release(synthetic_folder, tmp_path_factory) -> Path:
    return _pretrained(synthetic_folder, tmp_path_factory.mktemp("run"), "profiles")


@pytest.fixture(scope="module")
def everyones_release(synthetic_folder, tmp_path_factory) -> Path:
    """Trained on all but the last two events of every profile."""
    return _pretrained(synthetic_folder, tmp_path_factory.mktemp("run"), "last-two")


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
    assert figures["protocol"].startswith("profiles: leave one out")
    assert "among all 150 items" in figures["protocol"]
    assert "ties in item row order" in figures["protocol"]
    for name in ("hr@10", "ndcg@10", "mrr"):
        low, high = figures[f"{name}_ci95"]
        assert 0 <= low <= figures[name] <= high <= 1
    for parts in figures["slices"].values():
        assert sum(part["profiles"] for part in parts.values()) == figures["profiles"]
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


def test_a_profile_with_one_event_is_not_tested_and_disturbs_nothing(synthetic_folder, tmp_path):
    data = Path(shutil.copytree(synthetic_folder, tmp_path / "data"))
    events = pl.read_parquet(data / "events.parquet")
    profile = load_schema(data / "schema.toml").columns.profile_id
    place = pl.int_range(pl.len()).over(profile)
    events.filter((pl.col(profile) != events[profile][0]) | (place == 0)).write_parquet(
        data / "events.parquet"
    )
    release = _pretrained(data, tmp_path / "run", "last-two")
    assert evaluate(EvaluateConfig(release, data))["profiles"] == 59
    assert evaluate(EvaluateConfig(release, data, role="validation"))["profiles"] == 59


@pytest.mark.parametrize("role", ["test", "validation"])
def test_a_release_is_evaluated_under_its_own_protocol(everyones_release, synthetic_folder, role):
    figures = evaluate(EvaluateConfig(everyones_release, synthetic_folder, role=role))
    assert figures["profiles"] == 60
    assert figures["role"] == role
    assert figures["protocol"].startswith("last-two: leave one out")
    held_out = {"test": "part of the history", "validation": "the last event but one"}[role]
    assert held_out in figures["protocol"]


def test_without_data_the_folder_of_that_name_is_read(
    release, synthetic_folder, synthetic_dataset, tmp_path, monkeypatch
):
    shutil.copytree(synthetic_folder, tmp_path / "data" / synthetic_dataset.schema.name)
    monkeypatch.setenv("MARQUEE_HOME", str(tmp_path))
    assert evaluate(EvaluateConfig(release)) == evaluate(EvaluateConfig(release, synthetic_folder))


def test_validation_of_a_release_without_a_validation_event_says_what_to_do(synthetic_folder, tmp_path):
    release = _pretrained(synthetic_folder, tmp_path / "run", "last")
    assert "no validation event" in evaluate(EvaluateConfig(release, synthetic_folder))["protocol"]
    with pytest.raises(DataError, match=r"'last' holds no validation event out; .* --protocol last-two"):
        evaluate(EvaluateConfig(release, synthetic_folder, role="validation"))


def test_a_dump_gives_the_figures_again(everyones_release, synthetic_folder, synthetic_dataset, tmp_path):
    dump = tmp_path / "ranking.parquet"
    figures = evaluate(EvaluateConfig(everyones_release, synthetic_folder, dump=dump))
    rows = pl.read_parquet(dump).to_dicts()
    assert len(rows) == figures["profiles"] == 60
    hits = gains = reciprocals = 0.0
    for row in rows:
        place = row["top_item_ids"].index(row["item_id"])
        assert place == row["rank"] - 1  # all items of this catalogue fit into the top 200
        hits += place < 10
        gains += 1 / math.log2(place + 2) if place < 10 else 0
        reciprocals += 1 / row["rank"]
        assert len(row["top_item_ids"]) == len(row["top_scores"]) == len(set(row["top_item_ids"]))
        assert row["top_scores"] == sorted(row["top_scores"], reverse=True)
    assert hits / 60 == pytest.approx(figures["hr@10"])
    assert gains / 60 == pytest.approx(figures["ndcg@10"])
    assert reciprocals / 60 == pytest.approx(figures["mrr"])
    metadata = pl.read_parquet_metadata(dump)
    assert metadata["protocol"] == figures["protocol"]
    assert metadata["release"] == figures["version"]
    events = pl.read_parquet(synthetic_folder / "events.parquet")
    columns = synthetic_dataset.schema.columns
    for row, (_, history) in zip(rows, events.group_by(columns.profile_id, maintain_order=True), strict=True):
        assert row["profile_id"] == history[columns.profile_id][0]
        assert row["item_id"] == history[columns.item_id][-1]
        assert row["history_length"] == len(history) - 1
        assert set(row["top_item_ids"]) & set(history[columns.item_id][:-1]) <= {row["item_id"]}
    assert list(tmp_path.iterdir()) == [dump]


def test_a_dump_has_the_ids_of_the_files_where_they_are_strings(synthetic_folder, tmp_path):
    data = Path(shutil.copytree(synthetic_folder, tmp_path / "data"))
    (data / "split.json").unlink()
    schema = load_schema(data / "schema.toml").columns
    for file, columns in {
        "events": [schema.profile_id, schema.item_id],
        "items": [schema.item_id],
        "profiles": [schema.profile_id],
    }.items():
        path = data / f"{file}.parquet"
        named = [pl.concat_str(pl.lit(f"{column} "), pl.col(column)).alias(column) for column in columns]
        pl.read_parquet(path).with_columns(named).write_parquet(path)
    release = _pretrained(data, tmp_path / "run", "last")
    evaluate(EvaluateConfig(release, data, dump=tmp_path / "ranking.parquet"))
    dump = pl.read_parquet(tmp_path / "ranking.parquet")
    last = pl.read_parquet(data / "events.parquet").group_by(schema.profile_id, maintain_order=True).last()
    assert dump["profile_id"].to_list() == last[schema.profile_id].to_list()
    assert dump["item_id"].to_list() == last[schema.item_id].to_list()
    items = set(pl.read_parquet(data / "items.parquet")[schema.item_id])
    assert set(dump["top_item_ids"].explode()) <= items


def test_a_dump_into_a_missing_folder_is_refused_before_any_work(release, synthetic_folder, tmp_path):
    process = _run(release, synthetic_folder, "--dump", str(tmp_path / "missing" / "ranking.parquet"))
    assert process.returncode == 2
    assert "there is no folder" in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        evaluate(EvaluateConfig(release, synthetic_folder, dump=tmp_path))


def test_a_catalogue_that_lost_a_title_is_named(release, synthetic_folder, tmp_path):
    data = Path(shutil.copytree(synthetic_folder, tmp_path / "data"))
    items = pl.read_parquet(data / "items.parquet")
    items.filter(pl.int_range(pl.len()) != 3).write_parquet(data / "items.parquet")
    with pytest.raises(ReleaseError, match=r"items\.parquet: lacks 1 of the 150 items .* its number 3 "):
        evaluate(EvaluateConfig(release, data))


def test_a_release_of_another_schema_and_a_folder_without_data_are_named(release, synthetic_folder, tmp_path):
    data = Path(shutil.copytree(synthetic_folder, tmp_path / "data"))
    schema = (data / "schema.toml").read_text()
    (data / "schema.toml").write_text(schema.replace('role = "where"', 'role = "when"'))
    with pytest.raises(ReleaseError, match=r"schema\.toml: facets differs from the release's"):
        evaluate(EvaluateConfig(release, data))
    with pytest.raises(DataError, match=r"schema\.toml: not found"):
        evaluate(EvaluateConfig(release, tmp_path / "nothing"))
    (data / "schema.toml").write_text("".join(schema.splitlines(keepends=True)[1:]))
    with pytest.raises(ReleaseError, match=r"name differs .* \(name = 'data' here, '[^']+' there\)"):
        evaluate(EvaluateConfig(release, data))


def test_a_release_of_an_earlier_format_says_what_to_do(release, synthetic_folder, tmp_path):
    copy = Path(shutil.copytree(release, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["trained_on"]["cut"]["protocol"]
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(
        ReleaseError, match=r"manifest\.json: .* format is 1; this code reads 2; pre-train again"
    ):
        evaluate(EvaluateConfig(copy, synthetic_folder))


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
