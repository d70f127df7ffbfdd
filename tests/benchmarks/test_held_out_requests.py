"""Requests of the workload: held-out profiles, histories as the window says, candidates as asked."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.held_out_requests import HeldOutConfig, build_held_out_requests
from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.window import WindowConfig

WINDOW = WindowConfig(window=12, block=4)


def test_requests_come_from_different_held_out_profiles(synthetic_dataset: Dataset) -> None:
    test_profiles = synthetic_dataset.split.test
    workload = build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(len(test_profiles), 30))
    profiles = [workload.profile_id(number) for number in range(len(workload))]
    assert sorted(profiles) == sorted(test_profiles.tolist())


def test_histories_are_what_a_client_would_send(synthetic_dataset: Dataset) -> None:
    workload = build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(20, 30))
    assert len(workload) == 20
    events = synthetic_dataset.events
    for number in range(len(workload)):
        rows, histories = workload.history_rows(number), workload.histories(number)
        assert histories.history_lengths.tolist() == [rows.stop - rows.start] == [len(histories.item_id)]
        assert 0 < rows.stop - rows.start <= WINDOW.window
        assert histories.num_events_before[0] % WINDOW.block == 0
        np.testing.assert_array_equal(histories.timestamp, events.timestamp[rows])
        # The request is made as the next event happens, in its context and with nothing of its outcome.
        assert histories.request_timestamp[0] == events.timestamp[rows.stop]
        assert histories.request_facets["canvas"][0] == events.facets["canvas"][rows.stop]
        assert set(histories.request_facets) == {"holiday", "canvas", "device", "home_row"}


@pytest.mark.parametrize("length", [1, 5, 12])
def test_a_fixed_history_has_exactly_that_length(synthetic_dataset: Dataset, length: int) -> None:
    workload = build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(8, 30, history=length))
    assert {int(workload.histories(number).history_lengths[0]) for number in range(8)} == {length}
    for number in range(8):
        at = workload.history_rows(number).stop
        assert workload.histories(number).request_timestamp[0] == synthetic_dataset.events.timestamp[at]


def test_candidates_are_as_many_as_asked_unseen_and_hold_the_next_item(synthetic_dataset: Dataset) -> None:
    workload = build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(6, 40))
    for number in range(6):
        candidates, rows = workload.candidates(number), workload.history_rows(number)
        assert len(candidates) == len(set(candidates.tolist())) == 40
        assert synthetic_dataset.events.item_id[rows.stop] == workload.next_items(number)[0]
        assert np.isin(workload.next_items(number), candidates).all()


def test_the_same_seed_makes_the_same_requests(synthetic_dataset: Dataset) -> None:
    first, again, other = (
        build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(4, 30, seed=seed))
        for seed in (1, 1, 2)
    )
    for number in range(4):
        np.testing.assert_array_equal(first.candidates(number), again.candidates(number))
    assert any((first.candidates(number) != other.candidates(number)).any() for number in range(4))


def test_what_cannot_be_built_is_said(synthetic_dataset: Dataset) -> None:
    with pytest.raises(DataError, match="candidates is 5000"):
        build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(2, 5_000))
    with pytest.raises(DataError, match="choose a shorter history"):
        build_held_out_requests(synthetic_dataset, WINDOW, HeldOutConfig(2, 30, history=13))
    with pytest.raises(ValueError, match="requests is 0"):
        HeldOutConfig(requests=0)
