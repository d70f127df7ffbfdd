"""The cold-title command: what is taken out is out, and what its document holds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tyro

from benchmarks.cold_titles import ColdTitlesConfig, Document, measure, table
from benchmarks.stations import Stations
from benchmarks.title_split import draw_titles, write_without
from foundation.content import ContentConfig, fill_content
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.release import load_release
from foundation.split import TEST, VALIDATION, profile_roles
from foundation.vocabulary import FIRST_KNOWN, build_vocabularies


class InThisProcess(Stations):
    """Jobs run here: their arguments are read as on the command line, without starting Python anew."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.commands: list[list[str]] = []

    def run(self, title: str, module: str, *arguments: object) -> dict[str, Any]:
        given = [str(argument) for argument in arguments]
        self.commands.append([module, *given])
        if module == "foundation.content":
            return fill_content(tyro.cli(ContentConfig, args=given), Letters(), self.say)
        assert module == "foundation.pretrain"
        return pretrain(tyro.cli(PretrainConfig, args=given))


class Letters:
    """Counts letters: an encoder that needs no weights."""

    name, dimensions = "letters", 26

    def encode(self, sentences: Sequence[str], done: Callable[[int], object]) -> np.ndarray:
        counts = [[s.lower().count(chr(97 + i)) for i in range(26)] for s in sentences]
        done(len(sentences))
        vectors = np.array(counts, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _config(data: Path, out: Path, **changes: Any) -> ColdTitlesConfig:
    small = {"epochs": 1, "width": 8, "layers": 1, "window": 12, "tokens_per_batch": 400, "max_events": 40}
    return ColdTitlesConfig(data, out, **{**small, "share": 0.2, "content": True, **changes})


@pytest.fixture(scope="module")
def measured(
    synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Document, InThisProcess]:
    out, stations = tmp_path_factory.mktemp("cold"), InThisProcess()
    return out, measure(_config(synthetic_folder, out), stations), stations


def test_titles_are_drawn_by_the_seed() -> None:
    drawn = draw_titles(50, 0.1, seed=3)
    assert drawn.shape == (52,) and drawn.sum() == 5 and not drawn[:FIRST_KNOWN].any()
    assert (drawn == draw_titles(50, 0.1, seed=3)).all()
    assert (drawn != draw_titles(50, 0.1, seed=4)).any()


@pytest.mark.parametrize(("titles", "share"), [(4, 0.1), (4, 0.95)])
def test_a_draw_of_no_title_or_of_all_is_refused(titles: int, share: float) -> None:
    with pytest.raises(DataError, match="--share"):
        draw_titles(titles, share, seed=0)


def test_removed_titles_are_in_no_event_and_still_in_the_catalogue(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    is_cold = draw_titles(synthetic_dataset.num_items, 0.2, seed=0)
    left = write_without(synthetic_dataset, is_cold, 0, tmp_path / "left")
    cold_ids = synthetic_dataset.catalogue.item_id[is_cold[FIRST_KNOWN:]]
    was_cold = np.isin(synthetic_dataset.events.item_id, cold_ids)
    assert was_cold.any() and not np.isin(left.events.item_id, cold_ids).any()
    assert left.num_events == (~was_cold).sum()
    assert (left.events.item_id == synthetic_dataset.events.item_id[~was_cold]).all()
    assert (left.catalogue.item_id == synthetic_dataset.catalogue.item_id).all()
    counts = build_vocabularies(left).item_counts
    assert not counts[is_cold].any() and counts[~is_cold].any()
    assert left.split.to_json() == synthetic_dataset.split.to_json()


def test_a_derived_folder_is_reused_and_no_other_is_replaced(
    synthetic_dataset: Dataset, tmp_path: Path
) -> None:
    out, is_cold = tmp_path / "left", draw_titles(synthetic_dataset.num_items, 0.2, seed=0)
    write_without(synthetic_dataset, is_cold, 0, out)
    before = (out / "events.parquet").stat().st_mtime_ns
    write_without(synthetic_dataset, is_cold, 0, out)
    assert (out / "events.parquet").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds other files"):
        write_without(synthetic_dataset, draw_titles(synthetic_dataset.num_items, 0.2, 1), 1, out)


def test_ids_of_text_are_told_apart(synthetic_folder: Path, tmp_path: Path) -> None:
    for name in ("profiles.parquet", "schema.toml", "split.json"):
        (tmp_path / name).write_bytes((synthetic_folder / name).read_bytes())
    for name in ("events", "items"):
        ids = pl.read_parquet(synthetic_folder / f"{name}.parquet")
        ids = ids.with_columns(pl.format("title {}", "item_id").alias("item_id"))
        ids.write_parquet(tmp_path / f"{name}.parquet")
    dataset = load_dataset(tmp_path)
    is_cold = draw_titles(dataset.num_items, 0.2, seed=0)
    left = write_without(dataset, is_cold, 0, tmp_path / "left")
    assert 0 < left.num_events < dataset.num_events
    assert not build_vocabularies(left).item_counts[is_cold].any()


def test_the_releases_differ_in_what_helps_cold_titles_alone(
    measured: tuple[Path, Document, InThisProcess], synthetic_dataset: Dataset
) -> None:
    out, document, stations = measured
    of = {part: load_release(out / part / "release") for part in ("full-data-content", "plain-data")}
    assert of["full-data-content"].model.item_tower.content.shape[1] == 26
    assert of["plain-data"].model.item_tower.content.shape[1] == 0
    is_cold = draw_titles(synthetic_dataset.num_items, 0.2, seed=0)
    for release in of.values():
        assert not release.model.item_tower.counts.numpy()[is_cold].any()
    records = [json.loads((out / name / "run.json").read_text()) for name in of]
    full, plain = records
    assert plain["objective"]["masked_share"] == 0
    known = synthetic_dataset.catalogue.item_id.tolist()
    place = {item: row for row, item in enumerate(known, start=FIRST_KNOWN)}
    roles = np.repeat(profile_roles(synthetic_dataset), np.diff(synthetic_dataset.offsets))
    untested = synthetic_dataset.events.item_id[roles == VALIDATION].tolist()
    share = np.mean([is_cold[place[item]] for item in untested])
    assert full["objective"]["masked_share"] == pytest.approx(share, abs=1e-4)
    assert document["settings"]["masked_shares"] == {"full": full["objective"]["masked_share"], "plain": 0.0}
    for record in records:
        del record["data"], record["objective"]["masked_share"]
    assert full == plain
    jobs = [command[0].removeprefix("foundation.") for command in stations.commands]
    assert jobs == ["content", "pretrain", "pretrain"]


def test_the_document(measured: tuple[Path, Document, InThisProcess], synthetic_dataset: Dataset) -> None:
    _, document, _ = measured
    document = json.loads(json.dumps(document, allow_nan=False))
    cold, warm, settings = document["cold"], document["warm"], document["settings"]
    for name in ("recall@10", "popularity_recall@10", "chance_recall@10", "plain_recall@10"):
        low, high = cold["ci95"][name]
        assert 0 <= low <= cold[name] <= high <= 1
    assert cold["ratio"] == pytest.approx(cold["recall@10"] / cold["popularity_recall@10"])
    assert cold["all_titles_hr@10"] <= cold["recall@10"]
    variants = cold["popularity_variants"]
    assert cold["popularity_recall@10"] == max(variants["genre_mean"], variants["genre_sum"])
    assert cold["titles"] == 30 and warm["titles"] == 120
    assert 10 / 30 <= cold["chance_recall@10"] < 1
    for name in ("ndcg@10", "hr@10", "all_titles_ndcg@10", "all_titles_hr@10"):
        change = warm[name]
        assert change["relative_change"] == pytest.approx(change["full"] / change["plain"] - 1)
        if change["ci95"] is None:  # where a draw of profiles has no hit at all to compare with
            assert change["plain"] < 0.1
        else:
            assert change["ci95"][0] <= change["relative_change"] <= change["ci95"][1]
    for name in ("ndcg@10", "hr@10"):  # cold titles compete, too
        for each in ("full", "plain"):
            assert warm[f"all_titles_{name}"][each] <= warm[name][each]
    num_tested = int((profile_roles(synthetic_dataset) == TEST).sum())
    assert 0 < cold["events"] <= 40 * num_tested and cold["profiles"] <= num_tested
    is_cold = draw_titles(synthetic_dataset.num_items, 0.2, seed=0)
    cold_ids = synthetic_dataset.catalogue.item_id[is_cold[FIRST_KNOWN:]]
    tested = np.repeat(profile_roles(synthetic_dataset) == TEST, np.diff(synthetic_dataset.offsets))
    share = np.isin(synthetic_dataset.events.item_id[tested], cold_ids).mean()
    assert settings["cold_share_of_events"] == pytest.approx(share)
    assert sum(gate["titles"] for gate in document["gates"]["full"]) == synthetic_dataset.num_items
    assert document["gates"]["full"][0]["from_count"] == 0
    assert "commit" in document["environment"]
    shown = table(document)
    for word in ("full to popularity", "among all, relative change", "trust in the id"):
        assert word in shown


def test_a_second_run_reuses_everything(
    measured: tuple[Path, Document, InThisProcess], synthetic_folder: Path
) -> None:
    out, first, _ = measured
    releases = [out / name / "release" / "model.safetensors" for name in ("full-data-content", "plain-data")]
    before = [path.stat().st_mtime_ns for path in releases]
    again = measure(_config(synthetic_folder, out), InThisProcess())
    assert [path.stat().st_mtime_ns for path in releases] == before
    assert {name: again[name] for name in ("cold", "warm", "gates")} == {
        name: first[name] for name in ("cold", "warm", "gates")
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("width", 6), ("share", 1.0), ("masked_share", 1.0), ("max_events", 0), ("seed", -1)],
)
def test_a_wrong_setting_is_named(setting: str, value: float) -> None:
    with pytest.raises(DataError, match=f"--{setting.replace('_', '-')} is {value}"):
        ColdTitlesConfig(**{setting: value})  # pyright: ignore[reportArgumentType]


def test_a_wrong_feature_is_named_with_those_there_are(synthetic_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--genres is 'genre'.*entity_type.*genres"):
        measure(_config(synthetic_folder, tmp_path, genres="genre"), InThisProcess())


def test_data_with_content_embeddings_have_no_plain_release(
    measured: tuple[Path, Document, InThisProcess], tmp_path: Path
) -> None:
    out, _, _ = measured
    with pytest.raises(DataError, match="content_embedding is set"):
        measure(_config(out / "data-content", tmp_path), InThisProcess())
