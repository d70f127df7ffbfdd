"""Requests from events, by the written rule, and batches of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.dataset import Dataset
from foundation.raw_values import NO_NUMBER
from foundation.split import TEST, TRAIN, VALIDATION, profile_roles, training_cut, training_mask
from ranker.features.histories import Histories
from ranker.requests.from_events import EventRequests
from ranker.requests.negatives import NegativeSampler, training_popularity
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.making import RowMaker
from ranker.schema import Task, load_tasks
from ranker.training.targets import targets

TASKS = (
    Task("watch", "interaction"),
    Task("long", "threshold", facet="duration", at_least=1800.0),
)
ROLES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def candidates_of(requests: Requests, b: int) -> slice:
    return slice(int(requests.candidate_offsets[b]), int(requests.candidate_offsets[b + 1]))


@pytest.mark.parametrize("which", ["train", "validation", "test"])
@pytest.mark.parametrize("config", [RequestConfig(), RequestConfig(positives=3, negatives=4)])
def test_requests_follow_the_rule(synthetic_dataset: Dataset, which, config) -> None:
    dataset, events = synthetic_dataset, synthetic_dataset.events
    requests = EventRequests(dataset, TASKS).build(which, config, seed=3)
    roles = profile_roles(dataset)
    assert len(requests.profile) > 5
    for b, (profile, end) in enumerate(zip(requests.profile, requests.history_end, strict=True)):
        first, stop = dataset.offsets[profile], dataset.offsets[profile + 1]
        assert roles[profile] == ROLES[which]
        assert first + training_cut(stop - first) <= end < stop
        assert requests.timestamp[b] == events.timestamp[end]
        assert requests.facets.keys() == {"holiday", "canvas", "device", "home_row"}
        assert requests.facets["canvas"][b] == events.facets["canvas"][end]
        rows = candidates_of(requests, b)
        found = dict(
            zip(
                requests.candidate_id[rows],
                zip(requests.labels[rows], requests.mask[rows], strict=True),
                strict=True,
            )
        )
        assert len(found) == rows.stop - rows.start, "a candidate comes twice"
        label_events = range(end, min(end + config.positives, stop))
        positives = {}
        for row in label_events:
            positives.setdefault(events.item_id[row], events.facets["duration"][row])
        for item, seconds in positives.items():
            labels, mask = found.pop(item)
            assert mask.tolist() == [True, seconds != NO_NUMBER]
            assert labels.tolist() == [1.0, float(seconds != NO_NUMBER and seconds >= 1800)]
        met = set(events.item_id[first:end])
        assert len(found) == config.negatives
        assert not met & found.keys()
        assert found.keys() <= set(dataset.catalogue.item_id)
        for labels, mask in found.values():
            assert labels.tolist() == [0.0, 0.0]
            assert mask.tolist() == [True, False]


def test_points_lie_apart_and_cover_what_is_behind_the_cut(synthetic_dataset: Dataset) -> None:
    requests = EventRequests(synthetic_dataset, TASKS).build("test", RequestConfig(positives=4), seed=0)
    for profile in np.flatnonzero(profile_roles(synthetic_dataset) == TEST):
        first, stop = synthetic_dataset.offsets[profile : profile + 2]
        expected = range(int(first + training_cut(stop - first)), int(stop), 4)
        assert requests.history_end[requests.profile == profile].tolist() == list(expected)


def test_another_seed_brings_other_training_points_and_as_many(synthetic_dataset: Dataset) -> None:
    source = EventRequests(synthetic_dataset, TASKS)
    one, again, other = (source.build("train", RequestConfig(), seed) for seed in ((1, 2), (1, 2), (1, 3)))
    for field in ("history_end", "candidate_id", "labels"):
        assert np.array_equal(getattr(one, field), getattr(again, field))
    assert not np.array_equal(one.history_end, other.history_end)
    assert np.array_equal(one.profile, other.profile)


def test_at_most_so_many_of_a_profile(synthetic_dataset: Dataset) -> None:
    source = EventRequests(synthetic_dataset, TASKS)
    everything = source.build("train", RequestConfig(positives=2), 0)
    few = source.build("train", RequestConfig(positives=2, per_profile=2), 0)
    profiles, counts = np.unique(few.profile, return_counts=True)
    all_profiles, all_counts = np.unique(everything.profile, return_counts=True)
    assert np.array_equal(profiles, all_profiles)
    assert np.array_equal(counts, np.minimum(all_counts, 2))


def test_the_order_of_candidates_tells_nothing(synthetic_dataset: Dataset) -> None:
    requests = EventRequests(synthetic_dataset, TASKS).build("train", RequestConfig(), 0)
    place = np.arange(len(requests.candidate_id)) - np.repeat(
        requests.candidate_offsets[:-1], np.diff(requests.candidate_offsets)
    )
    watched = requests.labels[:, 0] == 1
    # 20 places: the mean place of a positive is 9.5, give or take five standard errors.
    assert abs(place[watched].mean() - 9.5) < 5 * 5.8 / np.sqrt(watched.sum())


def test_requests_without_tasks_fill_up_to_a_number_of_candidates(synthetic_dataset: Dataset) -> None:
    requests = build_requests(synthetic_dataset, (), "test", RequestConfig(candidates=50, per_profile=1))
    assert (np.diff(requests.candidate_offsets) == 50).all()
    assert requests.labels.shape == (len(requests.candidate_id), 0)
    assert requests.mask.dtype == bool


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_taking_requests_keeps_each_whole(synthetic_dataset: Dataset, data) -> None:
    requests = EventRequests(synthetic_dataset, TASKS).build("validation", RequestConfig(), 0)
    rows = np.array(
        data.draw(st.lists(st.integers(0, len(requests.profile) - 1), max_size=8)), dtype=np.int64
    )
    taken = requests.take(rows)
    for b, row in enumerate(rows):
        assert taken.history_end[b] == requests.history_end[row]
        assert taken.facets["device"][b] == requests.facets["device"][row]
        for field in ("candidate_id", "labels", "mask"):
            assert np.array_equal(
                getattr(taken, field)[candidates_of(taken, b)],
                getattr(requests, field)[candidates_of(requests, row)],
            )


# ---- negatives


def test_negatives_are_half_uniform_and_half_by_popularity(synthetic_dataset: Dataset) -> None:
    sampler = NegativeSampler(synthetic_dataset)
    draws = 40_000
    # Nothing was met before the first event, so that nothing is left out.
    rows, _ = sampler.sample(
        np.zeros(draws, np.int64), np.zeros(draws, np.int64), np.full(draws, 2), np.random.default_rng(0)
    )
    uniform, popular = rows.reshape(draws, 2).T
    share = np.bincount(uniform, minlength=150) / draws
    assert abs(share - 1 / 150).max() < 5 * np.sqrt(1 / 150 / draws)
    popularity = training_popularity(synthetic_dataset) / training_popularity(synthetic_dataset).sum()
    # The popular draw gives way where it meets the uniform one, one time in 150.
    assert abs(np.bincount(popular, minlength=150) / draws - popularity).max() < 0.01
    assert popularity.max() > 3 / 150, "popularity must differ from uniform for this test to tell them apart"


def test_popularity_counts_events_before_the_cut_of_training_profiles(synthetic_dataset: Dataset) -> None:
    counted = synthetic_dataset.events.item_id[training_mask(synthetic_dataset)].tolist()
    expected = [counted.count(item) for item in synthetic_dataset.catalogue.item_id]
    assert training_popularity(synthetic_dataset).tolist() == expected


def test_a_profile_that_has_met_nearly_everything_gets_what_is_left(synthetic_dataset: Dataset) -> None:
    sampler = NegativeSampler(synthetic_dataset)
    last = synthetic_dataset.offsets[1:]
    profile = np.arange(synthetic_dataset.num_profiles)
    rows, lengths = sampler.sample(profile, last, np.full(len(profile), 200), np.random.default_rng(0))
    offsets = np.cumsum([0, *lengths])
    for p in profile:
        met = set(synthetic_dataset.events.item_id[synthetic_dataset.offsets[p] : last[p]])
        drawn = synthetic_dataset.catalogue.item_id[rows[offsets[p] : offsets[p + 1]]]
        assert set(drawn) == set(synthetic_dataset.catalogue.item_id) - met
        assert len(set(drawn)) == len(drawn)


# ---- logged requests


# ---- batches


def raw(dataset: Dataset, requests: Requests, window: int, block: int) -> Histories:
    """The same requests in raw values, made one by one as a client would."""
    events, rows, before = dataset.events, [], []
    for profile, end in zip(requests.profile, requests.history_end, strict=True):
        first = int(dataset.offsets[profile])
        start = max(0, -(-(int(end) - first - window) // block) * block)
        rows.append(np.arange(first + start, end))
        before.append(start)
    history = np.concatenate(rows).astype(np.int64)
    return Histories(
        history_lengths=np.array([len(row) for row in rows]),
        num_events_before=np.array(before),
        item_id=events.item_id[history],
        timestamp=events.timestamp[history],
        facets={name: values[history] for name, values in events.facets.items()},
        request_timestamp=requests.timestamp,
        request_facets=requests.facets,
        profile_features={
            name: values[requests.profile] for name, values in dataset.profiles.features.items()
        },
    )


@pytest.mark.parametrize("tower", ["decoder", "pooled"])
@pytest.mark.parametrize("which", ["train", "test"])
def test_a_request_has_the_same_features_offline_and_as_it_comes_over_the_wire(
    synthetic_dataset, synthetic_folder, make_assembly, tower, which
) -> None:
    features = make_assembly(tower).features
    tasks = load_tasks(synthetic_folder / "schema.toml")
    requests = build_requests(synthetic_dataset, tasks, which, RequestConfig())
    window = features.config.window
    offline = model_inputs(features, RowMaker(synthetic_dataset, features).rows(requests))
    online = features.profile_inputs(raw(synthetic_dataset, requests, window.window, window.block))
    for name, values in online._asdict().items():
        assert torch.equal(getattr(offline.profile, name), values), name
    assert offline.candidates.offsets.tolist() == requests.candidate_offsets.tolist()


def test_next_items_are_the_newest_tokens_targets(synthetic_dataset, make_assembly) -> None:
    features = make_assembly("decoder").features
    requests = EventRequests(synthetic_dataset, TASKS).build("train", RequestConfig(), 0)
    # The last one is moved to the end of its profile's log: nothing came next.
    end = requests.history_end.copy()
    end[-1] = synthetic_dataset.offsets[requests.profile[-1] + 1]
    requests = requests._replace(history_end=end)
    made = RowMaker(synthetic_dataset, features).rows(requests)
    next_item = targets(made, tokens_per_request=3).next_item.numpy()
    offsets = np.cumsum([0, *np.minimum(made.history_lengths + 1, 3)])
    for b, (start, stop) in enumerate(pairwise(offsets)):
        asked = next_item[start:stop]
        rows = np.arange(requests.history_end[b] + 1 - len(asked), requests.history_end[b] + 1)
        last = b == len(requests.profile) - 1
        expected = features.candidate_rows(synthetic_dataset.events.item_id[rows[: len(rows) - last]])
        assert asked[: len(asked) - last].tolist() == expected.tolist()
        assert not last or asked[-1] < 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positives": 0}, "requests.positives is 0; it must be at least 1"),
        ({"negatives": -1}, "requests.negatives is -1"),
        ({"candidates": 4}, "requests.candidates is 4; it must be at least positives = 5"),
    ],
)
def test_settings_out_of_range_are_named(change, named) -> None:
    with pytest.raises(ValueError, match=named):
        replace(RequestConfig(), **change)
