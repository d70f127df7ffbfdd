"""The ablation command: folders that differ in their schema alone, rows that run once, and its document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tyro

from benchmarks.ablated_data import ROWS, derive, schema_toml
from benchmarks.ablations import AblationsConfig, measure, table
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.release import load_release
from foundation.schema import load_schema
from foundation.sources.movielens_schema import SCHEMA_TOML
from foundation.sources.synthetic_schema import SCHEMA_TOML as SYNTHETIC_TOML

Runner = Callable[..., dict[str, Any]]
SMALL = "--window.window 10 --window.block 5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """30 profiles with 8 ratings each of 12 titles, in MovieLens' schema."""
    folder = tmp_path_factory.mktemp("ratings")
    rng = np.random.default_rng(0)
    profiles, titles = np.arange(30), np.arange(12)
    (folder / "schema.toml").write_text(SCHEMA_TOML.format(size="1m"))
    pl.DataFrame(
        {
            "profile_id": np.repeat(profiles, 8),
            "item_id": np.concatenate([rng.permutation(12)[:8] for _ in profiles]),
            "timestamp": np.arange(240) * 5_000,
            "rating": rng.integers(1, 6, 240).astype(np.float32),
        }
    ).write_parquet(folder / "events.parquet")
    pl.DataFrame(
        {
            "item_id": titles,
            "title": [f"title {title}" for title in titles],
            "year": 1950.0 + 4 * titles,
            "genres": [["drama"], ["comedy", "drama"]] * 6,
        }
    ).write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {"profile_id": profiles, "gender": ["F", "M"] * 15, "age": [18] * 30, "occupation": profiles % 4}
    ).write_parquet(folder / "profiles.parquet")
    return load_dataset(folder)


@pytest.fixture
def runner() -> tuple[Runner, list[str]]:
    """Runs commands in this process from their arguments, and the modules that were run."""
    called: list[str] = []

    def run(title: str, module: str, *arguments: object) -> dict[str, Any]:
        called.append(module)
        args = [str(argument) for argument in arguments]
        if module == "foundation.pretrain":
            return pretrain(tyro.cli(PretrainConfig, args=args))
        assert module == "foundation.evaluate"
        return evaluate(tyro.cli(EvaluateConfig, args=args))

    return run, called


def _config(whole: Dataset, out: Path, **changes: Any) -> AblationsConfig:
    small: dict[str, Any] = {"epochs": 1, "width": 8, "layers": 1, "tokens_per_batch": 100, "more": SMALL}
    return AblationsConfig(out=out, data=whole.folder, **{**small, **changes})


@pytest.mark.parametrize("text", [SCHEMA_TOML.format(size="1m"), SYNTHETIC_TOML, "[merge]\nadjacent = true"])
def test_a_schema_comes_back_from_its_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(text)
    schema = load_schema(path)
    path.write_text(schema_toml(schema))
    assert load_schema(path) == schema


def test_each_row_goes_without_what_it_says(whole: Dataset, tmp_path: Path) -> None:
    found = {}
    for name in ROWS:
        derived = load_dataset(derive(whole, name, tmp_path / name))
        assert derived.split.hash() == whole.split.hash()
        np.testing.assert_array_equal(derived.events.item_id, whole.events.item_id)
        schema = derived.schema
        facets, features = (tuple(each.name for each in of) for of in (schema.facets, schema.item_features))
        found[name] = (schema.time_channels, facets, features)
    time, features = ("hour_of_week", "date", "gap"), ("genres", "year")
    assert found == {
        "all": (time, ("rating",), features),
        "no-time": ((), ("rating",), features),
        "no-ratings": (time, (), features),
        "ids": ((), (), ()),
    }


def test_a_folder_of_other_data_is_not_taken_for_the_row(whole: Dataset, tmp_path: Path) -> None:
    assert derive(whole, "ids", tmp_path / "data") == derive(whole, "ids", tmp_path / "data")
    with pytest.raises(DataError, match="holds other files"):
        derive(whole, "no-time", tmp_path / "data")


def test_a_row_that_the_schema_has_no_use_for_is_refused(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave out the row no-ratings"):
        derive(synthetic_dataset, "no-ratings", tmp_path / "data")


def test_rows_are_trained_evaluated_and_reused(
    whole: Dataset, tmp_path: Path, runner: tuple[Runner, list[str]]
) -> None:
    run, called = runner
    config = _config(whole, tmp_path)
    report = measure(config, run, lambda text: None)
    assert called == ["foundation.pretrain", "foundation.evaluate"] * 4
    assert list(report["rows"]) == list(ROWS) and report["missing"] == []
    for row in report["rows"].values():
        for name in ("hr@10", "ndcg@10", "mrr"):
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high
        assert row["profiles"] == 30 and row["items"] == 12 and row["protocol"].startswith("last: ")
        assert row["training"]["training_s"] > 0 and row["environment"]["commit"]
    assert report["rows"]["ids"]["inputs"] == {"time": [], "facets": [], "item_features": []}
    release = load_release(tmp_path / "ids" / "run" / "release")
    assert release.tokenizer.facet_columns == ("no_context",)
    json.dumps(report)
    text = table(report)
    assert all(row.title in text for row in ROWS.values()) and "SASRec" in text and ".1684" in text

    called.clear()
    assert measure(config, run, lambda text: None)["rows"] == report["rows"]
    only = _config(whole, tmp_path, report_only=True)
    assert measure(only, run, lambda text: None)["rows"] == report["rows"]
    assert called == []
    with pytest.raises(DataError, match=r"result\.json: arguments of this finished row"):
        measure(_config(whole, tmp_path, report_only=True, epochs=2), run, lambda text: None)


def test_a_report_names_the_rows_that_are_not_finished(
    whole: Dataset, tmp_path: Path, runner: tuple[Runner, list[str]]
) -> None:
    run, called = runner
    measure(_config(whole, tmp_path, rows=("ids",)), run, lambda text: None)
    called.clear()
    report = measure(_config(whole, tmp_path, report_only=True), run, lambda text: None)
    assert list(report["rows"]) == ["ids"] and report["missing"] == ["all", "no-time", "no-ratings"]
    assert called == [] and "not finished: --rows no-time" in table(report)


def test_rows_without_time_have_the_order_alone(
    whole: Dataset, tmp_path: Path, runner: tuple[Runner, list[str]]
) -> None:
    """The scores of ids and order are those of the same events at other times."""
    run, _ = runner
    measure(_config(whole, tmp_path, rows=("ids",)), run, lambda text: None)
    release = load_release(tmp_path / "ids" / "run" / "release")
    raw, tokenizer = whole.events, release.tokenizer
    rows = np.arange(8)
    tokens = [
        tokenizer.assemble(tokenizer.event_ids(raw.item_id, times, {}), rows, rows - 1)
        for times in (raw.timestamp, raw.timestamp * 7 + 3)
    ]
    for one, other in zip(*tokens, strict=True):
        np.testing.assert_array_equal(one, other)


def test_settings_that_would_give_a_row_what_it_goes_without_are_refused() -> None:
    assert "--window.window" in AblationsConfig(more=SMALL).arguments()
    with pytest.raises(DataError, match="hstu reads times"):
        AblationsConfig(more="--decoder.block hstu")
    with pytest.raises(DataError, match="--rows is empty"):
        AblationsConfig(rows=())
