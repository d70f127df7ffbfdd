"""Nothing that a test request is scored on has been in any training data, popularity counts included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.dataset import Dataset, load_dataset
from foundation.manifest import training_data_of
from foundation.release import load_release
from foundation.split import TRAIN, profile_roles, training_cut, training_mask
from foundation.training_batches import epoch_batches, training_histories
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig, span_rows
from ranker.arches.interaction import InteractionConfig
from ranker.assembly import number_scales
from ranker.features.item_features import build_item_features
from ranker.model import RankerConfig
from ranker.requests.from_events import EventRequests
from ranker.requests.negatives import training_popularity
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.source import build_requests
from ranker.rows import job
from ranker.rows.folder import RowFolder
from ranker.schema import load_tasks
from ranker.training.cotrain_config import CotrainConfig
from ranker.training.cotraining import Cotraining
from ranker.training.sharding import process_group

SEEDS = range(5)


@pytest.fixture(scope="module", params=["events", "logged"])
def folder(request: pytest.FixtureRequest, event_task_folder: Path, synthetic_folder: Path) -> Path:
    """A dataset whose requests are made of events, and one whose requests were logged."""
    return event_task_folder if request.param == "events" else synthetic_folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load_dataset(folder)


def label_events(dataset: Dataset, requests: Requests) -> set[int]:
    """Rows of all events that a label of these requests may come from: the profile's events from the request on."""
    return set(span_rows(requests.history_end, dataset.offsets[requests.profile + 1]).rows.tolist())


def history_events(dataset: Dataset, requests: Requests) -> set[int]:
    return set(span_rows(dataset.offsets[requests.profile], requests.history_end).rows.tolist())


def test_no_label_event_of_a_test_request_is_in_any_training_data(dataset: Dataset, folder: Path) -> None:
    tasks = load_tasks(folder / "schema.toml")
    tested = label_events(dataset, build_requests(dataset, tasks, "test", RequestConfig(), 0))
    tested |= label_events(dataset, build_requests(dataset, tasks, "validation", RequestConfig(), 0))
    assert len(tested) > 30
    # The foundation model's: what it may count, and what its batches hold.
    counted = set(np.flatnonzero(training_mask(dataset)).tolist())
    assert not tested & counted
    for epoch in SEEDS:
        batches = epoch_batches(training_histories(dataset), WindowConfig(12, 4), 300, seed=0, epoch=epoch)
        in_batches = {row for batch in batches for row in span_rows(batch.starts, batch.stops).rows.tolist()}
        assert in_batches <= counted
    # The ranker's: every event that a training request reads or is labelled by.
    for seed in SEEDS:
        trained = build_requests(dataset, tasks, "train", RequestConfig(), (0, seed))
        assert not tested & label_events(dataset, trained)
        assert not tested & history_events(dataset, trained)


def test_no_label_event_of_a_training_request_was_the_foundations(dataset: Dataset, folder: Path) -> None:
    tasks = load_tasks(folder / "schema.toml")
    seen = set(np.flatnonzero(training_mask(dataset)).tolist())
    for seed in SEEDS:
        assert not seen & label_events(
            dataset, build_requests(dataset, tasks, "train", RequestConfig(), (0, seed))
        )


def with_other_events(dataset: Dataset, changed: np.ndarray) -> Dataset:
    """The dataset with other items and outcomes at the rows in the mask `changed`."""
    events, rng = dataset.events, np.random.default_rng(0)
    item_id = events.item_id.copy()
    item_id[changed] = rng.choice(dataset.catalogue.item_id, changed.sum())
    facets = {name: values.copy() for name, values in events.facets.items()}
    for values in facets.values():
        values[changed] = rng.permutation(values[changed])
    assert (item_id != events.item_id).sum() > 0.9 * changed.sum()
    return replace(dataset, events=replace(events, item_id=item_id, facets=facets))


def what_training_reads(dataset: Dataset) -> list[object]:
    vocabularies = build_vocabularies(dataset)
    items = build_item_features(dataset, vocabularies)
    return [
        vocabularies.to_json(),
        training_popularity(dataset).tolist(),
        items.sparse.tolist(),
        items.dense.tolist(),
        number_scales(dataset),
        training_data_of(dataset),
    ]


def test_counts_vocabularies_and_features_do_not_know_what_is_held_out(dataset: Dataset) -> None:
    num_events = np.diff(dataset.offsets)
    roles = np.repeat(profile_roles(dataset), num_events)
    behind = np.concatenate([np.arange(n) >= training_cut(n) for n in num_events])
    expected = what_training_reads(dataset)
    assert what_training_reads(with_other_events(dataset, roles != TRAIN)) == expected
    assert what_training_reads(with_other_events(dataset, (roles == TRAIN) & behind)) == expected
    assert what_training_reads(with_other_events(dataset, (roles == TRAIN) & ~behind)) != expected


def test_training_requests_do_not_know_what_held_out_profiles_did(event_task_folder: Path) -> None:
    dataset, tasks = load_dataset(event_task_folder), load_tasks(event_task_folder / "schema.toml")
    roles = np.repeat(profile_roles(dataset), np.diff(dataset.offsets))
    expected = EventRequests(dataset, tasks).build("train", RequestConfig(), 0)
    found = EventRequests(with_other_events(dataset, roles != TRAIN), tasks).build(
        "train", RequestConfig(), 0
    )
    for name, values in expected._asdict().items():
        if name == "facets":
            assert all(np.array_equal(values[facet], found.facets[facet]) for facet in values)
        else:
            assert np.array_equal(values, getattr(found, name)), name


def test_a_trained_ranker_is_the_same_to_the_bit_whatever_held_out_profiles_did(
    event_task_folder: Path, release_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(event_task_folder)
    num_events = np.diff(dataset.offsets)
    roles = np.repeat(profile_roles(dataset), num_events)
    behind = np.concatenate([np.arange(n) >= training_cut(n) for n in num_events])
    states = []
    worlds = (
        dataset,
        with_other_events(dataset, roles != TRAIN),
        with_other_events(dataset, (roles == TRAIN) & behind),
    )
    for number, world in enumerate(worlds):
        monkeypatch.setattr(job, "load_dataset", lambda _, world=world: world)
        rows = tmp_path / f"rows-{number}"
        job.make_rows(job.RowsConfig(event_task_folder, release_folder, rows, draws=1))
        config = CotrainConfig(
            release_folder,
            tmp_path / str(number),
            rows=rows,
            requests_per_batch=12,
            ranker=RankerConfig(interaction=InteractionConfig(num_dots=2, dot_width=16, hidden_widths=(8,))),
        )
        with process_group():
            run = Cotraining(config, RowFolder.open(rows), load_release(release_folder))
            for step in range(3):
                run.train_on(step, run.batch(step))
            assert run.gather()
            states.append(run.whole.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
