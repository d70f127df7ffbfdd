"""Logged requests replayed: what the server computes of their raw values is what the feature job wrote to disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from foundation.dataset import Dataset, load_dataset
from foundation.decoder import DecoderConfig
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig, FoundationModel
from foundation.release import save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig
from ranker.features.builder import FeatureBuilder
from ranker.rows.folder import RowFolder
from ranker.rows.inputs import model_inputs as inputs_of_rows
from ranker.rows.job import RowsConfig, make_rows
from ranker.rows.manifest import PARTS
from ranker.rows.rows import Rows
from serving.contract import Contract
from serving.rank_request import History, RankRequest, wire_arrays
from serving.wire import contract_of, model_inputs

SCORE = '\n[[candidate_feature]]\nname = "score"\nkind = "numeric"\ncolumn = "scores"\n'
MERGE = "\n[merge]\nadjacent = true\n"


def save_small_release(dataset: Dataset, folder: Path) -> Path:
    vocabularies = build_vocabularies(dataset)
    tokenizer = Tokenizer(dataset.schema, vocabularies)
    model = FoundationModel(
        FoundationConfig(DecoderConfig(width=16, num_layers=1, num_heads=2), window=WindowConfig(12, 4)),
        tokenizer.num_facet_rows,
        num_item_feature_rows(dataset.schema, vocabularies),
        item_facts(tokenizer, dataset.catalogue),
        tokenizer.age_column,
    )
    save_release(folder, model, tokenizer, training_data_of(dataset), {})
    return folder


@pytest.fixture(scope="module", params=["plain", "merged"])
def replayed(request, synthetic_folder: Path, tmp_path_factory) -> tuple[Dataset, RowFolder]:
    """A world whose requests also say a score of each candidate, and its rows; with adjacent events merged or not."""
    folder = tmp_path_factory.mktemp("replay") / "data"
    shutil.copytree(synthetic_folder, folder)
    text = (folder / "schema.toml").read_text(encoding="utf-8") + SCORE
    (folder / "schema.toml").write_text(text + (MERGE if request.param == "merged" else ""), encoding="utf-8")
    logged = pl.read_parquet(folder / "requests.parquet")
    rng = np.random.default_rng(0)
    scores = [
        [None if rng.random() < 0.1 else round(float(value), 3) for value in rng.standard_normal(number)]
        for number in logged["candidates"].list.len()
    ]
    logged.with_columns(pl.Series("scores", scores)).write_parquet(folder / "requests.parquet")
    dataset = load_dataset(folder)
    release = save_small_release(dataset, folder.parent / "release")
    make_rows(RowsConfig(folder, release, folder.parent / "rows"))
    return dataset, RowFolder.open(folder.parent / "rows")


def as_called(
    dataset: Dataset, logged: dict[str, Any], events: pl.DataFrame, profiles: pl.DataFrame
) -> RankRequest:
    """The request as a client would send it: raw values of the files, nothing looked up."""
    schema = dataset.schema
    before = events.filter(
        (pl.col("profile_id") == logged["profile_id"]) & (pl.col("timestamp") < logged["timestamp"])
    )
    (profile,) = profiles.filter(pl.col("profile_id") == logged["profile_id"]).to_dicts()
    return RankRequest(
        timestamp=logged["timestamp"],
        candidates=logged["candidates"],
        history=History(
            before["item_id"].to_list(),
            before["timestamp"].to_list(),
            {facet.name: before[facet.column].to_list() for facet in schema.declared_facets},
        ),
        context={facet.name: logged[facet.column] for facet in schema.facets_of("when", "where")},
        profile={feature.name: profile[feature.column] for feature in schema.profile_features},
        candidate_features={"score": logged["scores"]},
    )


def is_between_merged(dataset: Dataset, profile_id: int, timestamp: int) -> bool:
    """Whether a merged event began before and was not over: offline it is left out, online its first part is sent."""
    row = int(np.flatnonzero(dataset.profile_ids == profile_id)[0])
    mine = slice(*dataset.offsets[row : row + 2])
    began, over = dataset.events.timestamp[mine], dataset.events.over_at[mine]
    return bool(((began < timestamp) & (over >= timestamp)).any())


def assert_equal(features: FeatureBuilder, contract: Contract, rows: Rows, call: RankRequest) -> None:
    online = model_inputs(contract, features, wire_arrays(contract, [call]))
    offline = inputs_of_rows(
        features, replace(rows, candidates=features.config.candidates.as_served(rows.candidates))
    )
    for one, other in zip(online, (offline.profile, offline.candidates), strict=True):
        for name, value in one._asdict().items():
            assert value.dtype == getattr(other, name).dtype, name
            assert torch.equal(value, getattr(other, name)), name


def test_online_values_of_a_logged_request_are_the_rows_on_disk(replayed: tuple[Dataset, RowFolder]) -> None:
    dataset, folder = replayed
    logged = pl.read_parquet(dataset.folder / "requests.parquet")
    events = pl.read_parquet(dataset.folder / "events.parquet")
    profiles = pl.read_parquet(dataset.folder / "profiles.parquet")
    contract = contract_of(folder.features, dict.fromkeys(folder.manifest.tasks, 0.0), 100)
    assert [field.name for field in contract.candidate] == ["score"]
    num_compared = 0
    rows = folder.read_all("test")
    for place in range(len(rows)):
        found = rows.take(np.array([place]))
        profile_id, timestamp = int(found.profile_id[0]), int(found.histories.request.timestamp[0])
        (row,) = logged.filter(
            (pl.col("profile_id") == profile_id) & (pl.col("timestamp") == timestamp)
        ).to_dicts()
        if is_between_merged(dataset, profile_id, timestamp):
            continue
        assert_equal(folder.features, contract, found, as_called(dataset, row, events, profiles))
        num_compared += 1
    assert num_compared > 10


def test_rows_know_the_position_that_serving_fixes(replayed: tuple[Dataset, RowFolder]) -> None:
    _, folder = replayed
    column = folder.features.fields.candidates.sparse
    assert [field.name for field in column] == ["position", "score"]
    (lookup,) = (
        each.lookup for each in folder.features.config.candidates.known if each.feature.name == "position"
    )
    fixed = lookup.lookup(np.array([0]))[0]
    for part in PARTS:
        rows = folder.read_all(part)
        first = np.repeat(rows.candidate_offsets[:-1], np.diff(rows.candidate_offsets))
        expected = lookup.lookup(np.arange(len(rows.item_rows)) - first)
        assert np.array_equal(rows.candidates.sparse[:, 0], expected)
        served = folder.features.config.candidates.as_served(rows.candidates)
        assert (served.sparse[:, 0] == fixed).all()
        assert np.array_equal(served.sparse[:, 1:], rows.candidates.sparse[:, 1:])
