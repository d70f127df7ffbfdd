"""The plan of training steps: every row once an epoch, in random company of like length, whatever the lanes."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.rows.plan import BATCHES_PER_SPAN, Plan, PlanConfig

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def lane_rows(plan: Plan, lane: int, step: int) -> list[tuple[int, int]]:
    """(row group, row) of a lane's rows in the window that holds `step`, as they are read."""
    pieces = plan.pieces(lane, plan.window(step))
    return [(piece.group, row) for piece in pieces for row in range(piece.first, piece.last)]


def epoch_rows(plan: Plan, epoch: int) -> list[list[tuple[int, int]]]:
    """(row group, row) of each step of an epoch, over all lanes."""
    steps: list[list[tuple[int, int]]] = [[] for _ in range(plan.steps_per_epoch)]
    for lane in range(plan.config.lanes):
        place = 0
        while place < plan.steps_per_epoch and plan.quota(lane):
            step = epoch * plan.steps_per_epoch + place
            rows, window = lane_rows(plan, lane, step), plan.window(step)
            # Any lengths: they say who is whose company, never who is there.
            lengths = np.array([7 * group + row for group, row in rows]) % 13
            for share in plan.order(lane, window, lengths):
                steps[place] += [rows[row] for row in share]
                place += 1
    return steps


@given(SIZES, st.integers(1, 70), st.integers(1, 10), st.integers(1, 300), st.integers(0, 3))
def test_an_epoch_shows_each_row_at_most_once_in_batches_of_one_size(sizes, per_batch, lanes, window, seed):
    plan = Plan([np.array(sizes)], per_batch, seed, PlanConfig(lanes, window))
    steps = epoch_rows(plan, seed)
    assert {len(step) for step in steps} == {plan.batch_size} == {min(per_batch, sum(sizes))}
    shown = [row for step in steps for row in step]
    assert len(set(shown)) == len(shown) > sum(sizes) - plan.batch_size
    assert set(shown) <= {(group, row) for group, size in enumerate(sizes) for row in range(size)}


def test_lanes_hardly_read_one_anothers_row_groups() -> None:
    plan = Plan([np.full(64, 100)], 64, 0, PlanConfig())
    groups = [{piece.group for piece in plan.pieces(lane, plan.window(0))} for lane in range(8)]
    assert len(set.union(*groups)) == 64
    assert sum(map(len, groups)) <= 64 + 7


def test_epochs_read_the_draws_in_turn_and_in_another_order() -> None:
    sizes = [np.full(16, 10), np.full(20, 8)]
    plan = Plan(sizes, 16, 0, PlanConfig(lanes=2))
    assert [plan.draw(epoch) for epoch in range(4)] == [0, 1, 0, 1]
    first, _, again = (epoch_rows(plan, epoch) for epoch in range(3))
    assert sorted(chain(*first)) == sorted(chain(*again))
    assert first[0] != again[0]
    assert plan.steps_per_epoch == 10
    assert {group for group, _ in chain(*epoch_rows(plan, 1))} == set(range(20))


def test_the_smallest_draw_says_how_many_steps_an_epoch_has() -> None:
    plan = Plan([np.array([50]), np.array([33])], 8, 0, PlanConfig())
    assert plan.steps_per_epoch == 4
    assert all(len(step) == 8 for epoch in range(2) for step in epoch_rows(plan, epoch))


def test_a_steps_lanes_are_of_like_lengths_and_steps_come_in_no_order_of_length() -> None:
    plan = Plan([np.full(64, 100)], 64, 0, PlanConfig())
    rng, longest = np.random.default_rng(0), []
    window = plan.window(0)
    assert window.num_steps == plan.steps_per_epoch == 100
    for lane in range(8):
        lengths = rng.integers(0, 200, len(lane_rows(plan, lane, 0)))
        longest.append([lengths[share].max() for share in plan.order(lane, window, lengths)])
    spread = np.ptp(np.array(longest)[:, :-10], axis=0).mean()
    assert spread < 60  # of unsorted rows it is 80, of one length 0
    assert np.mean(np.std(longest, axis=0)) < 0.5 * np.std(longest)
    rises = (np.diff(longest[0]) > 0).mean()
    assert 0.3 < rises < 0.7


def test_rows_of_one_row_group_are_spread_over_the_window() -> None:
    plan = Plan([np.full(8, 128)], 8, 0, PlanConfig(lanes=1))
    window, rows = plan.window(0), lane_rows(plan, 0, 0)
    order = plan.order(0, window, np.zeros(len(rows), dtype=np.int64))
    groups = np.array([[rows[row][0] for row in share] for share in order])
    assert np.mean([len(set(step)) for step in groups.tolist()]) > 4


@given(st.integers(1, 60), st.integers(1, 12))
def test_where_rows_are_missing_shares_shrink_but_none_is_empty(num_rows, quota) -> None:
    plan = Plan([np.array([quota * 40])], quota, 0, PlanConfig(lanes=1))
    shares = plan.order(0, plan.window(0), np.arange(min(num_rows, quota * 40)))
    assert len(shares) == plan.window(0).num_steps == 40
    assert all(len(share) for share in shares)
    assert set(np.concatenate(shares)) == set(range(min(num_rows, quota * 40)))


def test_windows_are_whole_spans_and_cover_an_epoch() -> None:
    plan = Plan([np.full(100, 50)], 10, 0, PlanConfig(lanes=2, shuffle_requests=1000))
    windows = [plan.window(step) for step in range(plan.steps_per_epoch, 2 * plan.steps_per_epoch)]
    assert {window.epoch for window in windows} == {1}
    assert {window.num_steps for window in windows[:-20]} == {1000 // 160 * BATCHES_PER_SPAN}
    assert len({window.index for window in windows}) == 6
    assert windows[-1].first_step + windows[-1].num_steps == plan.steps_per_epoch


@pytest.mark.parametrize("sizes", [[], [np.array([], dtype=np.int64)], [np.array([3]), np.array([0])]])
def test_a_draw_without_rows_is_refused(sizes) -> None:
    with pytest.raises(ValueError, match="each must have rows"):
        Plan(sizes, 8, 0, PlanConfig())


@pytest.mark.parametrize("name", ["lanes", "shuffle_requests"])
def test_settings_out_of_range_are_named(name) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        PlanConfig(**{name: 0})
