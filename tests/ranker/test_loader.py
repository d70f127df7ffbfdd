"""The loader: the same steps whoever reads them, from any step on, and what becomes of shards that went bad."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from foundation.errors import DataError
from foundation.manifest import TrainingCut
from foundation.tokens import EventIds
from ranker.features.candidate_features import CandidateColumns
from ranker.features.inputs import ProfileFeatures, TokenizedHistories
from ranker.rows.folder import RowFolder
from ranker.rows.loader import LoaderConfig, RowLoader, Share, prefetched
from ranker.rows.manifest import FORMAT, ReleaseOrigin, RowsManifest, ShardRecord
from ranker.rows.parquet import Widths, to_table
from ranker.rows.plan import Plan, PlanConfig
from ranker.rows.row_groups import TrainingRowGroups
from ranker.rows.rows import Rows

ROW_GROUPS = ((13, 13, 7), (13, 13, 13, 13))
PER_SHARD = [sum(groups) for groups in ROW_GROUPS]
NUM_ROWS = sum(PER_SHARD)


def numbered_rows(first: int, number: int) -> Rows:
    """Rows whose profiles are `first`, `first + 1`, ..., each with another history and number of candidates."""
    profile = np.arange(first, first + number)
    history, candidates = profile % 7, 1 + profile % 3

    def events(profiles: np.ndarray) -> EventIds:
        column = np.zeros((len(profiles), 1), dtype=np.int64)
        return EventIds(profiles, profiles, column, column)

    of_candidates = np.repeat(profile, candidates)
    return Rows(
        profile,
        TokenizedHistories(
            events(np.repeat(profile, history)),
            np.concatenate(([0], np.cumsum(history))),
            np.zeros(number, dtype=np.int64),
            events(profile)._replace(item=np.zeros(number, dtype=np.int64)),
            ProfileFeatures(np.empty((number, 0), dtype=np.int64), np.empty((number, 0), dtype=np.float32)),
        ),
        events(profile),
        np.concatenate(([0], np.cumsum(candidates))),
        of_candidates,
        CandidateColumns(
            np.empty((len(of_candidates), 0), dtype=np.int64), np.empty((len(of_candidates), 0), np.float32)
        ),
        (of_candidates[:, None] % 2).astype(np.float32),
        np.ones((len(of_candidates), 1), dtype=bool),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> RowFolder:
    """A folder with two draws of two shards each; a row's profile is its place, 1000 more in the second draw."""
    path, draws = tmp_path_factory.mktemp("rows"), []
    for draw in range(2):
        records, first = [], 1000 * draw
        for number, groups in enumerate(ROW_GROUPS):
            name = f"train/draw-{draw:03d}/part-{number:05d}.parquet"
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            tables = []
            for group in groups:
                tables.append(to_table(numbered_rows(first, group)))
                first += group
            with pq.ParquetWriter(path / name, tables[0].schema) as writer:
                for table in tables:
                    writer.write_table(table)
            records.append(ShardRecord(name, groups, ""))
        draws.append(tuple(records))
    cut = TrainingCut("profiles", 0.8, "", "", 0)
    widths = Widths.of(numbered_rows(0, 3))
    manifest = RowsManifest(
        FORMAT, ReleaseOrigin("", "", cut), "", ("watch",), widths, (1.0,), tuple(draws), (), ()
    )
    return RowFolder(path, manifest, None, None, (), {})  # type: ignore[arg-type]


@pytest.fixture
def folder(written: RowFolder, tmp_path: Path) -> RowFolder:
    """A copy, to be damaged."""
    shutil.copytree(written.path, tmp_path / "rows")
    return RowFolder(tmp_path / "rows", written.manifest, None, None, (), {})  # type: ignore[arg-type]


def loader(folder: RowFolder, rank: int = 0, world_size: int = 1, **options) -> RowLoader:
    source = TrainingRowGroups(folder)
    plan = Plan(source.sizes, 9, 3, PlanConfig(lanes=4, shuffle_requests=30))
    return RowLoader(source, plan, LoaderConfig(**options), rank, world_size)


def seen(shares: Iterator[Share]) -> list[dict[int, list[int]]]:
    """The profiles of each step, by lane."""
    return [{lane: rows.profile_id.tolist() for lane, rows in share.lanes} for share in shares]


def steps_of(one: RowLoader) -> int:
    return one.plan.steps_per_epoch


def test_epochs_show_every_row_of_their_draw_once(written: RowFolder) -> None:
    one = loader(written)
    steps = seen(one.shares(0, 2 * steps_of(one)))
    assert steps_of(one) == NUM_ROWS // 9
    for epoch in range(2):
        shown = [
            profile
            for step in steps[epoch * steps_of(one) :][: steps_of(one)]
            for lane in step.values()
            for profile in lane
        ]
        assert len(set(shown)) == len(shown) == steps_of(one) * 9
        assert {profile // 1000 for profile in shown} == {epoch}


def test_rows_come_with_their_own_histories_and_candidates(written: RowFolder) -> None:
    for share in loader(written).shares(0, 4):
        for _, rows in share.lanes:
            found, expected = rows, [numbered_rows(profile, 1) for profile in rows.profile_id]
            assert found.item_rows.tolist() == np.concatenate([row.item_rows for row in expected]).tolist()
            assert found.history_lengths.tolist() == (rows.profile_id % 7).tolist()
            assert (
                found.histories.history.item.tolist()
                == np.repeat(rows.profile_id, rows.history_lengths).tolist()
            )


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_steps_of_one(written: RowFolder, world_size) -> None:
    expected = seen(loader(written).shares(0, 25))
    found: list[dict[int, list[int]]] = [{} for _ in expected]
    for rank in range(world_size):
        for whole, part in zip(found, seen(loader(written, rank, world_size).shares(0, 25)), strict=True):
            assert not whole.keys() & part.keys()
            whole |= part
    assert [dict(sorted(step.items())) for step in found] == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_read_the_same(written: RowFolder, workers) -> None:
    assert seen(loader(written, workers=workers).shares(5, 22)) == seen(loader(written).shares(5, 22))


def test_a_start_at_any_step_reads_what_an_unbroken_run_reads_there(written: RowFolder) -> None:
    one = loader(written)
    expected = seen(one.shares(0, 24))
    for first in range(24):
        assert seen(islice(one.shares(first, 24), 2)) == expected[first : first + 2]


def test_a_start_reads_only_its_own_window(written: RowFolder) -> None:
    one, read = loader(written), []
    source = one.source

    class Counted:
        def read(self, draw: int, group: int) -> Rows:
            read.append((draw, group))
            return source.read(draw, group)

    one.source = Counted()
    first = 2 * steps_of(one) - 1
    next(one.shares(first, first + 1))
    window = one.plan.window(first)
    expected = [(1, piece.group) for lane in one.lanes for piece in one.plan.pieces(lane, window)]
    assert read == expected


def test_a_process_reads_the_row_groups_of_its_lanes_alone(written: RowFolder) -> None:
    source, groups = TrainingRowGroups(written), []
    for rank in range(2):
        mine = loader(written, rank, 2)
        assert mine.lanes == [rank, rank + 2]
        windows = {mine.plan.window(step) for step in range(steps_of(mine))}
        groups.append(
            {
                piece.group
                for window in windows
                for lane in mine.lanes
                for piece in mine.plan.pieces(lane, window)
            }
        )
    assert len(groups[0] & groups[1]) <= 3
    assert groups[0] | groups[1] == set(range(len(source.sizes[0])))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def shrink(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path, row_group_size=13)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, shrink])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_shard_stops_the_run_with_its_name_and_row_group(folder: RowFolder, damage, workers) -> None:
    path = folder.shards("train")[1].path
    damage(path)
    with pytest.raises(DataError, match=rf"{path}: row group \d: ") as raised:
        list(loader(folder, workers=workers).shares(0, 9))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_shard_is_skipped_and_counted_where_that_was_asked_for(folder: RowFolder, workers) -> None:
    folder.shards("train")[0].path.unlink()
    one = loader(folder, bad_rows="skip", workers=workers)
    shares = list(one.shares(0, steps_of(one)))
    assert len(shares) == steps_of(one)
    assert all(len(rows) for share in shares for _, rows in share.lanes)
    shown = {profile for share in shares for _, rows in share.lanes for profile in rows.profile_id.tolist()}
    assert shown <= set(range(PER_SHARD[0], NUM_ROWS))
    skipped = sum(number for share in shares for number in share.skipped.values())
    assert PER_SHARD[0] - 9 <= skipped <= PER_SHARD[0]
    assert {said.split(": row group")[0] for share in shares for said in share.skipped} == {
        str(folder.shards("train")[0].path)
    }


def test_ranks_agree_on_the_steps_when_rows_are_skipped(folder: RowFolder) -> None:
    folder.shards("train")[0].path.unlink()
    whole = seen(loader(folder, bad_rows="skip").shares(0, 9))
    halves = [seen(loader(folder, rank, 2, bad_rows="skip").shares(0, 9)) for rank in range(2)]
    assert [dict(sorted((one | two).items())) for one, two in zip(*halves, strict=True)] == whole


def test_nothing_left_to_read_stops_a_run_that_skips(folder: RowFolder) -> None:
    for shard in folder.shards("train"):
        shard.path.unlink()
    with pytest.raises(DataError, match=r"part-0000\d\.parquet: row group \d: .*nothing that this window"):
        list(loader(folder, bad_rows="skip").shares(0, 9))


@pytest.mark.parametrize(
    ("world_size", "named"), [(3, "lanes is 4; it must be a multiple of the number of processes, 3")]
)
def test_more_processes_than_fit_are_refused(written: RowFolder, world_size, named) -> None:
    with pytest.raises(DataError, match=named):
        loader(written, 0, world_size)


def test_prefetching_keeps_the_order_works_ahead_and_stops_when_told(written: RowFolder) -> None:
    prepared = []

    def prepare(share: Share) -> int:
        prepared.append(sum(len(rows) for _, rows in share.lanes))
        return len(prepared)

    with prefetched(loader(written).shares(0, 20), prepare) as items:
        assert next(items) == 1
        deadline = time.monotonic() + 5
        while len(prepared) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 3 <= len(prepared) <= 5
        assert list(islice(items, 3)) == [2, 3, 4]
    ended = len(prepared)
    time.sleep(0.05)
    assert len(prepared) == ended < 20
    with prefetched(loader(written).shares(0, 5), prepare) as items:
        assert len(list(items)) == 5


def test_an_error_ahead_is_raised_where_its_step_is_taken(folder: RowFolder) -> None:
    folder.shards("train", 1)[0].path.unlink()
    one = loader(folder)
    with prefetched(one.shares(0, 20), lambda share: share) as items:
        whole = list(islice(items, steps_of(one)))
        with pytest.raises(DataError, match="draw-001"):
            next(items)
    assert len(whole) == steps_of(one)
