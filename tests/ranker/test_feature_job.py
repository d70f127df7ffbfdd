"""The feature job: what it writes is what the library makes, it survives a kill, and it tells what it left out."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.manifest import file_hash
from ranker.requests.from_events import EventRequests
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.source import build_requests
from ranker.rows import building
from ranker.rows.building import RowsBuild
from ranker.rows.folder import RowFolder
from ranker.rows.making import RowMaker
from ranker.rows.parquet import to_table
from ranker.rows.rows import Rows
from ranker.schema import load_tasks

REQUESTS = "requests.parquet"


def same(one: Rows, other: Rows) -> bool:
    return to_table(one).equals(to_table(other))


def test_rows_of_logged_requests_are_those_of_the_library(
    make, synthetic_folder, synthetic_dataset, tmp_path
) -> None:
    document = make(synthetic_folder)
    folder = RowFolder.open(tmp_path / "rows")
    tasks = load_tasks(synthetic_folder / "schema.toml")
    assert folder.tasks == tasks and folder.num_draws == 1
    maker = RowMaker(synthetic_dataset, folder.features)
    for part in ("train", "validation", "test"):
        expected = maker.rows(build_requests(synthetic_dataset, tasks, part, RequestConfig()))
        # The library's come profile by profile, as they lie in the log of this world.
        assert same(folder.read_all(part), expected), part
    num_train = folder.num_rows("train")
    assert document["requests"] == {
        "train": [num_train],
        "validation": folder.num_rows("validation"),
        "test": folder.num_rows("test"),
    }
    assert len(folder.shards("train")[0].row_groups) >= 64
    assert document["seconds_per_million_log_events"] > 0 and document["skipped"] == {}
    assert document["noticed"]["requests read"] == pl.read_parquet(synthetic_folder / REQUESTS).height


def test_requests_of_events_are_drawn_anew(make, event_task_folder, tmp_path) -> None:
    make(event_task_folder, draws=2, requests=RequestConfig(positives=2, negatives=4))
    folder = RowFolder.open(tmp_path / "rows")
    first, second = folder.read_all("train", 0), folder.read_all("train", 1)
    assert len(first) == len(second) > 60
    assert not same(first, second)
    assert len(folder.shards("train", 1)[0].row_groups) >= 64
    # Neighbours on disk are strangers: profiles come in no order.
    assert (np.diff(first.profile_id) < 0).mean() > 0.3
    validation = folder.read_all("validation")
    assert np.unique(validation.profile_id, return_counts=True)[1].max() <= 2


def test_negatives_kept_is_the_share_of_unseen_items_that_were_sampled(
    make, event_task_folder, tmp_path
) -> None:
    config = RequestConfig(positives=2, negatives=4)
    make(event_task_folder, draws=1, requests=config)
    dataset = load_dataset(event_task_folder)
    requests = EventRequests(dataset, load_tasks(event_task_folder / "schema.toml")).build(
        "train", config, (0, 0)
    )
    sampled = possible = 0
    for profile, end, first, last in zip(
        requests.profile,
        requests.history_end,
        requests.candidate_offsets[:-1],
        requests.candidate_offsets[1:],
        strict=True,
    ):
        met = set(dataset.events.item_id[dataset.offsets[profile] : end].tolist())
        watched = set(requests.candidate_id[first:last][requests.labels[first:last, 0] == 1].tolist())
        sampled += last - first - len(watched)
        possible += len(set(dataset.catalogue.item_id.tolist()) - met - watched)
    watch, like = RowFolder.open(tmp_path / "rows").manifest.negatives_kept
    assert watch == pytest.approx(sampled / possible) and 0 < watch < 0.1
    assert like == 1


def test_declared_shares_of_logged_negatives_are_kept(make, copy, tmp_path) -> None:
    path = copy / "schema.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace('column = "label_like"', 'column = "label_like"\nnegatives_kept = 0.25'),
        encoding="utf-8",
    )
    make(copy)
    assert RowFolder.open(tmp_path / "rows").manifest.negatives_kept == (1, 0.25)


def test_a_killed_job_leaves_nothing_half_and_makes_what_is_left(
    make, event_task_folder, tmp_path, monkeypatch
) -> None:
    make(event_task_folder, "whole", draws=3)
    write, written = RowsBuild.write, []

    def killed(self, number, unit, maker, advance):
        if number == 2 and len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        return write(self, number, unit, maker, advance)

    monkeypatch.setattr(building.RowsBuild, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        make(event_task_folder, draws=3)
    assert not (tmp_path / "rows").exists()
    written.append(-1)
    make(event_task_folder, draws=3)
    assert written == [0, 1, -1, 2, 3, 4]
    whole, resumed = (RowFolder.open(tmp_path / name).manifest for name in ("whole", "rows"))
    assert whole.hash == resumed.hash
    assert whole.counts == resumed.counts
    assert not list(tmp_path.glob(".*.partial"))


def test_what_another_job_left_half_made_is_not_used(make, event_task_folder, tmp_path) -> None:
    half = tmp_path / ".rows.partial"
    (half / "units").mkdir(parents=True)
    (half / "settings.json").write_text("{}")
    (half / "units" / "00000.json").write_text('{"shards": {}}')
    make(event_task_folder, draws=1)
    assert RowFolder.open(tmp_path / "rows").num_rows("train") > 0


def test_rows_that_are_there_stay_and_others_are_refused(make, event_task_folder, tmp_path) -> None:
    first = make(event_task_folder, draws=1)
    before = (tmp_path / "rows" / "manifest.json").stat().st_mtime_ns
    assert make(event_task_folder, draws=1) == first
    assert (tmp_path / "rows" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="rows are there already, made with draws = 1 and not 2"):
        make(event_task_folder, draws=2)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="holds no rows; choose another --out"):
        make(event_task_folder, "mine", draws=1)


def test_items_that_the_release_lacks_are_counted_or_refused(make, copy, tmp_path) -> None:
    items = pl.read_parquet(copy / "items.parquet")
    newcomer = items.head(1).with_columns(item_id=pl.lit(7, dtype=pl.Int64))
    # In front: the rows of the others must not move.
    pl.concat([newcomer, items]).write_parquet(copy / "items.parquet")
    logged = pl.read_parquet(copy / REQUESTS)
    shown = pl.concat_list(pl.lit(7, dtype=pl.Int64), pl.col("candidates").list.slice(1))
    logged.with_columns(candidates=shown).write_parquet(copy / REQUESTS)
    document = make(copy)
    assert document["catalogue_items_unknown"] == 1
    folder = RowFolder.open(tmp_path / "rows")
    rows = folder.read_all("train")
    assert (rows.item_rows[rows.candidate_offsets[:-1]] == 0).all()
    assert folder.manifest.counts["rows"]["train/draw-000 unknown candidates"] >= len(rows)
    known = items["item_id"].to_numpy()
    assert np.array_equal(folder.features.tokenizer.vocabularies.items.keys, known)
    with pytest.raises(DataError, match=r"items\.parquet: has 1 items that the release .* lacks"):
        make(copy, "other", unknown_items="stop")


def test_no_training_request_is_an_error(make, copy) -> None:
    pl.read_parquet(copy / REQUESTS).filter(pl.col("timestamp") < 0).write_parquet(copy / REQUESTS)
    with pytest.raises(DataError, match="has no training request behind the cut"):
        make(copy)


def test_the_command_ends_in_one_json_document(synthetic_folder, release_folder, tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "ranker.features",
        "--data",
        synthetic_folder,
        "--release",
        release_folder,
    ]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "rows"), "--bad-rows", "skip", "--max-candidates", "20"],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["rows"] == str(tmp_path / "rows")
    assert "per million log events" in done.stderr
    folder = RowFolder.open(tmp_path / "rows")
    for shard in folder.shards("train"):
        assert file_hash(shard.path) == shard.sha256


def test_requests_keep_their_candidate_features(synthetic_dataset, synthetic_folder) -> None:
    tasks = load_tasks(synthetic_folder / "schema.toml")
    for part in ("train", "test"):
        requests: Requests = build_requests(synthetic_dataset, tasks, part, RequestConfig())
        lengths = np.diff(requests.candidate_offsets)
        shown_at = np.concatenate([np.arange(length) for length in lengths])
        assert np.array_equal(requests.candidate_features["position"], shown_at)
