"""The synthetic world: seeded, complete, and with the effects that it claims to have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.schema import FEATURE_KINDS, KINDS, ROLES
from foundation.sources.synthetic import write_synthetic
from foundation.sources.synthetic_world import GENRES, SyntheticConfig, draw_items, draw_viewers

SMALL = SyntheticConfig(profiles=10, items=60, sessions=4, candidates=8)
FILES = ("events", "items", "profiles", "requests", "truth")


@pytest.fixture(scope="module")
def impressions(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """A world large enough to see effects in, one row an impression."""
    folder = tmp_path_factory.mktemp("data") / "world"
    write_synthetic(folder, SyntheticConfig(profiles=150, items=200, sessions=15))
    requests = pl.read_parquet(folder / "requests.parquet").join(
        pl.read_parquet(folder / "truth.parquet"), on="request_id", validate="1:1"
    )
    return requests.explode(
        "candidates", "positions", "label_watch", "label_like", "preference", "examination"
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_synthetic(tmp_path / name, SyntheticConfig(10, 60, 4, 8, seed=seed))
    written = {
        name: [(tmp_path / name / f"{file}.parquet").read_bytes() for file in FILES]
        for name in ("first", "again", "other")
    }
    assert written["first"] == written["again"]
    assert all(one != other for one, other in zip(written["first"], written["other"], strict=True))


def test_the_schema_has_every_kind_and_every_role(synthetic_dataset: Dataset) -> None:
    schema = synthetic_dataset.schema
    assert {facet.role for facet in schema.facets} == set(ROLES)
    assert {facet.kind for facet in schema.facets} == set(KINDS)
    for group in (schema.item_features, schema.profile_features):
        assert {feature.kind for feature in group} == set(FEATURE_KINDS)


def test_every_canvas_action_and_device_happens(synthetic_folder: Path) -> None:
    events = pl.read_parquet(synthetic_folder / "events.parquet")
    assert set(events["canvas"]) == {"home", "search", "kids", "mobile_feed"}
    assert set(events["action"]) == {"play", "finish", "thumbs_up", "trailer", "add_to_list"}
    assert set(events["device"]) == {"tv", "phone", "tablet", "web"}
    assert events.filter(pl.col("canvas") == "mobile_feed")["device"].unique().to_list() == ["phone"]
    # Missing values of each kind, so that every path of theirs is taken.
    assert events["home_row"].null_count() > 0
    assert events["duration"].null_count() > 0
    assert (events["audio_languages"].list.len() == 0).any()


def test_events_are_the_watched_impressions(synthetic_folder: Path) -> None:
    events = pl.read_parquet(synthetic_folder / "events.parquet")
    requests = pl.read_parquet(synthetic_folder / "requests.parquet")
    lists = ("candidates", "positions", "label_watch", "label_like")
    watched = requests.explode(*lists).filter(pl.col("label_watch") == 1)
    joined = watched.join(
        events, left_on=("profile_id", "candidates"), right_on=("profile_id", "item_id"), validate="1:1"
    )
    assert len(joined) == len(watched) == len(events)
    waited = (joined["timestamp_right"] - joined["timestamp"]).to_numpy()
    assert waited.min() >= 60
    assert waited.max() < 86_400
    for column in ("canvas", "device", "home_row", "holiday"):
        assert joined[column].equals(joined[f"{column}_right"], null_equal=True, check_names=False)
    assert joined["positions"].equals(joined["position"], check_names=False)


def test_lists_of_a_request_are_aligned_and_like_is_known_only_where_watched(
    impressions: pl.DataFrame,
) -> None:
    unwatched = impressions["label_watch"] == 0
    assert impressions["label_like"].is_null().equals(unwatched, check_names=False)
    assert set(impressions["label_like"].drop_nulls()) == {0, 1}
    assert impressions.select("request_id", "candidates").is_unique().all()


def test_nothing_is_shown_before_its_launch_or_again_once_watched(
    impressions: pl.DataFrame, synthetic_folder: Path
) -> None:
    requests = pl.read_parquet(synthetic_folder / "requests.parquet").explode("candidates")
    launched = pl.read_parquet(synthetic_folder / "items.parquet").select("item_id", "launched_at")
    shown = requests.join(launched, left_on="candidates", right_on="item_id")
    assert (shown["launched_at"] <= shown["timestamp"]).all()
    assert (launched["launched_at"].to_numpy() > requests["timestamp"].to_numpy().min()).any()
    last = impressions.group_by("profile_id", "candidates").agg(
        last_shown=pl.col("timestamp").max(),
        watched=pl.col("timestamp").filter(pl.col("label_watch") == 1).max(),
    )
    assert not (last["last_shown"] > last["watched"]).any()


def test_attention_falls_with_position_at_equal_preference(impressions: pl.DataFrame) -> None:
    liked = impressions.filter(pl.col("preference") > 0.6, pl.col("canvas") == "home")
    position, watched = liked["positions"].to_numpy(), liked["label_watch"].to_numpy()
    rate = [watched[(low <= position) & (position < low + 5)].mean() for low in (0, 5, 10)]
    assert rate[0] > 1.5 * rate[1]
    assert rate[1] > rate[2]


def test_labels_follow_the_true_preference(impressions: pl.DataFrame) -> None:
    # A watch has probability preference x examination: over many impressions the sums must meet.
    chance = (impressions["preference"] * impressions["examination"]).cast(pl.Float64).to_numpy()
    watched = impressions["label_watch"].to_numpy()
    deviation = np.sqrt((chance * (1 - chance)).sum())
    for part in (chance < 0.1, (chance >= 0.1) & (chance < 0.3), chance >= 0.3):
        assert abs(watched[part].sum() - chance[part].sum()) < 4 * deviation


def test_tastes_drift() -> None:
    tastes = draw_viewers(SyntheticConfig(profiles=300), np.random.default_rng(0)).taste
    start, end = tastes[:, 0], tastes[:, 1]
    correlation = [np.corrcoef(one, other)[0, 1] for one, other in zip(start, end, strict=True)]
    assert tastes.shape == (300, 2, len(GENRES))
    assert abs(float(np.mean(correlation))) < 0.2


def test_a_third_of_the_catalogue_launches_during_the_year() -> None:
    items = draw_items(SyntheticConfig(items=3000), np.random.default_rng(0))
    assert 0.28 < (items.launched_at >= 1_704_067_200).mean() < 0.38


def test_every_profile_has_events_and_every_request_a_profile(synthetic_folder: Path) -> None:
    dataset = load_dataset(synthetic_folder)
    requests = pl.read_parquet(synthetic_folder / "requests.parquet")
    assert set(requests["profile_id"]) == set(dataset.profile_ids.tolist())
    assert requests["request_id"].is_unique().all()
    assert len(set(dataset.catalogue.titles)) == dataset.num_items


def test_a_finished_folder_is_reused_and_any_other_left_alone(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "world", SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "world").iterdir()}
    write_synthetic(tmp_path / "world", SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "world").iterdir()} == before
    with pytest.raises(DataError, match="holds other files already"):
        write_synthetic(tmp_path / "world", SyntheticConfig(11, 60, 4, 8))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(DataError, match="holds other files already"):
        write_synthetic(tmp_path / "mine", SMALL)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letters.txt"]


def test_a_size_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "foundation.sources.synthetic",
        "--out",
        str(tmp_path / "w"),
        "--profiles",
        "2",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "profiles = 2: must be at least 3" in ended.stderr
    assert "Traceback" not in ended.stderr
