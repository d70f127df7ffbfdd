"""Neither the catalogue nor the history tells a positive from a sampled candidate, whatever the events repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foundation.dataset import Dataset
from foundation.split import profile_roles
from ranker.requests.from_events import EventRequests
from ranker.requests.request import ROLE_OF, RequestConfig
from ranker.schema import Task

TASKS = (Task("watch", "interaction"),)
UNKNOWN = 77_000_000


@pytest.fixture(scope="module")
def repeating(synthetic_dataset: Dataset) -> Dataset:
    """The synthetic world in which a third of the events are of an item met before, and a fifth of unknown ones.

    One training profile meets nothing new behind its cut.
    """
    events, rng = synthetic_dataset.events, np.random.default_rng(0)
    item_id = events.item_id.copy()
    owner = np.repeat(events.offsets[:-1], np.diff(events.offsets))
    rows = np.arange(len(item_id))
    earlier = owner + (rng.random(len(rows)) * (rows - owner)).astype(np.int64)
    again, unknown = np.split(rng.permutation(rows)[: int(0.53 * len(rows))], [int(0.33 * len(rows))])
    item_id[unknown] = UNKNOWN + rng.integers(30, size=len(unknown))
    for row in np.sort(again):
        item_id[row] = item_id[earlier[row]]
    bored = np.flatnonzero(profile_roles(synthetic_dataset) == ROLE_OF["train"])[0]
    first, stop = events.offsets[bored : bored + 2]
    item_id[first + 1 : stop] = item_id[first]
    return replace(synthetic_dataset, events=replace(events, item_id=item_id))


@pytest.mark.parametrize("which", ["train", "test"])
def test_positives_are_the_next_known_items_that_are_new(repeating: Dataset, which) -> None:
    config = RequestConfig(positives=3, negatives=6)
    requests = EventRequests(repeating, TASKS).build(which, config, seed=1)
    events, catalogue = repeating.events, set(repeating.catalogue.item_id)
    assert len(requests.profile) > 5
    num_after_something_old = 0
    for b, (profile, end) in enumerate(zip(requests.profile, requests.history_end, strict=True)):
        first, stop = repeating.offsets[profile], repeating.offsets[profile + 1]
        met = set(events.item_id[first:end])
        new = [item for item in dict.fromkeys(events.item_id[end:stop]) if item in catalogue - met]
        rows = slice(*requests.candidate_offsets[b : b + 2])
        candidates, watched = requests.candidate_id[rows], requests.labels[rows, 0] == 1
        assert set(candidates[watched]) == set(new[:3]) != set()
        assert events.item_id[end] == new[0], "a request is made at its first positive"
        assert len(candidates) == len(new[:3]) + 6
        # What a label could be told by, if it differed between the two: it doesn't.
        assert set(candidates) <= catalogue
        assert not set(candidates) & met
        num_after_something_old += not set(events.item_id[end : end + 3]) <= catalogue - met
    assert num_after_something_old > 5, (
        "repeats and unknown items must come between positives for this to test"
    )


def test_a_profile_that_meets_nothing_new_makes_no_request_and_every_seed_as_many(repeating: Dataset) -> None:
    source = EventRequests(repeating, TASKS)
    bored = np.flatnonzero(profile_roles(repeating) == ROLE_OF["train"])[0]
    everyone = [source.build("train", RequestConfig(), seed) for seed in range(4)]
    assert all(bored not in requests.profile for requests in everyone)
    assert all(np.array_equal(requests.profile, everyone[0].profile) for requests in everyone)
    assert len({tuple(requests.history_end) for requests in everyone}) > 1
