"""The feature builder: one path for raw and pre-tokenised requests, jagged batches, and bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.raw_values import NO_NUMBER, NO_VALUE
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, START
from ranker.features.columns import SparseField
from ranker.features.files import load_features, save_features
from ranker.features.histories import Histories
from ranker.features.inputs import ProfileInputs, TokenizedHistories
from ranker.features.item_features import (
    MOST_DEVIATIONS,
    mean_and_deviation,
    scale,
    standardised,
    training_counts,
)
from ranker.features.recent_items import RecentItems

TOWERS = ("decoder", "pooled")


def assert_same(first: ProfileInputs, second: ProfileInputs) -> None:
    for name, left, right in zip(first._fields, first, second, strict=True):
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name


@pytest.fixture
def histories(synthetic_dataset, raw_histories) -> Histories:
    """Four requests: three of long profiles, one of them cut to its window, and one with an empty history."""
    lengths = np.diff(synthetic_dataset.events.offsets)
    profiles = np.argsort(-lengths, kind="stable")[:4].tolist()
    return raw_histories(synthetic_dataset, profiles, (3, int(lengths[profiles[1]]) - 1, 0, 5))


@pytest.mark.parametrize("tower", TOWERS)
def test_replay_raw_and_pre_tokenised_requests_give_identical_inputs(
    synthetic_dataset, make_assembly, raw_histories, tower
) -> None:
    features = make_assembly(tower).features
    events, tokenizer = synthetic_dataset.events, features.tokenizer
    num_events = np.diff(events.offsets)
    profiles = np.arange(len(num_events))
    ends = num_events - 1
    raw = raw_histories(synthetic_dataset, profiles, ends)
    all_events = tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
    all_profiles = features.profile_features(synthetic_dataset.profiles.features, len(profiles))
    first = events.offsets[:-1] + raw.num_events_before
    spans = [np.arange(start, start + n) for start, n in zip(first, raw.history_lengths, strict=True)]
    rows, requests = np.concatenate(spans), events.offsets[:-1] + ends
    nothing_done = tokenizer.request_ids(raw.request_timestamp, raw.request_facets).outcome_side
    tokenised = TokenizedHistories(
        history=type(all_events)(*(column[rows] for column in all_events)),
        history_offsets=np.concatenate(([0], np.cumsum(raw.history_lengths))),
        num_events_before=raw.num_events_before,
        request=type(all_events)(
            np.full(len(profiles), OUT_OF_VOCABULARY),
            all_events.timestamp[requests],
            all_events.request_side[requests],
            nothing_done,
        ),
        profile=all_profiles,
    )
    assert_same(features.assemble(tokenised), features.profile_inputs(raw))


@pytest.mark.parametrize("tower", TOWERS)
def test_a_request_gets_the_same_inputs_alone_and_in_a_batch(make_assembly, histories, tower) -> None:
    features = make_assembly(tower).features
    batch = features.profile_inputs(histories)
    offsets = np.concatenate(([0], np.cumsum(histories.history_lengths)))
    token = 0
    for b, length in enumerate(histories.history_lengths):
        events = slice(offsets[b], offsets[b + 1])
        alone = features.profile_inputs(
            Histories(
                histories.history_lengths[b : b + 1],
                histories.num_events_before[b : b + 1],
                histories.item_id[events],
                histories.timestamp[events],
                {name: values[events] for name, values in histories.facets.items()},
                histories.request_timestamp[b : b + 1],
                {name: values[b : b + 1] for name, values in histories.request_facets.items()},
                {name: values[b : b + 1] for name, values in histories.profile_features.items()},
            )
        )
        tokens = slice(token, token + length + 1)
        assert torch.equal(alone.facet_ids, batch.facet_ids[tokens])
        assert torch.equal(alone.item_ids, batch.item_ids[tokens])
        assert torch.equal(alone.positions, batch.positions[tokens])
        assert torch.equal(alone.sparse[0], batch.sparse[b])
        assert torch.equal(alone.dense[0], batch.dense[b])
        assert alone.last_index.tolist() == [length]
        token += length + 1
    assert token == len(batch.item_ids)


@pytest.mark.parametrize("tower", TOWERS)
def test_unknown_values_are_out_of_vocabulary_and_never_an_error(make_assembly, histories, tower) -> None:
    features = make_assembly(tower).features
    unknown = 123_456_789_123

    def strange(values: np.ndarray) -> np.ndarray:
        return np.full_like(values, np.float32(1e30) if values.dtype == np.float32 else unknown)

    known = features.profile_inputs(histories)
    inputs = features.profile_inputs(
        histories._replace(
            item_id=np.full_like(histories.item_id, unknown),
            facets={name: strange(values) for name, values in histories.facets.items()},
            request_facets={name: strange(values) for name, values in histories.request_facets.items()},
            profile_features={name: strange(values) for name, values in histories.profile_features.items()},
        )
    )
    assert [value.shape for value in inputs] == [value.shape for value in known]
    assert inputs.item_ids.max() <= 1
    country = features.fields.profile.sparse[0].num_columns
    assert (inputs.sparse[:, country] == OUT_OF_VOCABULARY).all()
    for field, column in zip(
        features.fields.profile.sparse, first_columns(features.fields.profile.sparse), strict=True
    ):
        ids = inputs.sparse[:, column : column + field.num_columns]
        assert ids.min() >= -1, field
        assert ids.max() < field.num_rows, field
    assert torch.isfinite(inputs.dense).all()


def first_columns(fields: tuple[SparseField, ...]) -> list[int]:
    return np.cumsum([0, *(field.num_columns for field in fields)])[:-1].tolist()


def test_missing_values_are_absent(make_assembly, histories) -> None:
    features = make_assembly("decoder").features
    raw = {
        name: np.full_like(values, NO_NUMBER if values.dtype == np.float32 else NO_VALUE)
        for name, values in histories.profile_features.items()
    }
    found = features.profile_features(raw, 4)
    assert (found.sparse == -1).all()
    assert (found.dense == 0).all()


def test_a_newest_event_ahead_of_the_clock_counts_as_just_now(make_assembly, histories) -> None:
    features = make_assembly("decoder").features
    last = np.cumsum(histories.history_lengths)[0] - 1
    ahead = histories.timestamp.copy()
    ahead[last] = histories.request_timestamp[0] + 9_999
    now = histories.timestamp.copy()
    now[last] = histories.request_timestamp[0]
    future = features.profile_inputs(histories._replace(timestamp=ahead)).dense
    assert torch.equal(future, features.profile_inputs(histories._replace(timestamp=now)).dense)
    assert future[0, 1] == 0


def test_dense_features_count_the_events_not_sent_and_grow_with_time(make_assembly, histories) -> None:
    features = make_assembly("decoder").features
    assert histories.num_events_before[1] > 0
    dense = features.profile_inputs(histories).dense
    later = features.profile_inputs(
        histories._replace(
            num_events_before=histories.num_events_before + 10,
            request_timestamp=histories.request_timestamp + 7_200,
        )
    ).dense
    has_history = torch.from_numpy(histories.history_lengths > 0)
    assert (later[:, 0] > dense[:, 0]).all()
    assert (later[has_history, 1] > dense[has_history, 1]).all()
    assert dense[~has_history, :2].eq(0).all()


def test_a_history_longer_than_the_window_is_refused(make_assembly, synthetic_dataset, raw_histories) -> None:
    features = make_assembly("decoder").features
    raw = raw_histories(synthetic_dataset, [0, 0], [2, 12])
    assert raw.history_lengths.tolist() == [2, 12]
    assert len(features.profile_inputs(raw).item_ids) == 16
    too_long = raw._replace(history_lengths=np.array([1, 13]))
    with pytest.raises(ValueError, match=r"history_lengths\[1\] is 13; at most window = 12 events"):
        features.profile_inputs(too_long)


@pytest.mark.parametrize("lengths", [[3, 1], [-1, 15]])
def test_lengths_that_do_not_add_up_are_refused(
    make_assembly, synthetic_dataset, raw_histories, lengths
) -> None:
    features = make_assembly("decoder").features
    raw = raw_histories(synthetic_dataset, [0, 0], [2, 12])
    with pytest.raises(ValueError, match="history_lengths add up to"):
        features.profile_inputs(raw._replace(history_lengths=np.array(lengths)))
    with pytest.raises(ValueError, match="candidate_lengths add up to"):
        features.candidate_inputs(raw.item_id, np.array(lengths))


def test_candidates_are_catalogue_rows_and_unknown_ones_row_zero(make_assembly, synthetic_dataset) -> None:
    features = make_assembly("decoder").features
    known = synthetic_dataset.catalogue.item_id[[4, 0, 4]]
    found = features.candidate_inputs(np.append(known, [77, NO_VALUE]), np.array([0, 3, 2]))
    assert found.item_rows.tolist() == [
        FIRST_KNOWN + 4,
        FIRST_KNOWN,
        FIRST_KNOWN + 4,
        OUT_OF_VOCABULARY,
        OUT_OF_VOCABULARY,
    ]
    assert found.offsets.tolist() == [0, 0, 3, 5]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_recent_items_are_the_newest_first_with_their_features(lengths: list[int], num_recent: int) -> None:
    fields = (SparseField("item_id", 1, 8, of_items=True), SparseField("genres", 2, 5))
    table = np.array([[-1, -1, -1], [-1, -1, -1], *([i, i % 5, -1] for i in range(2, 8))])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    item = np.arange(offsets[-1]) % 8
    bags = RecentItems(num_recent, fields, table)
    assert [field.num_columns for field in bags.fields] == [num_recent, 2 * num_recent]
    found = bags.columns(item, offsets)
    for b, row in enumerate(found):
        newest = item[offsets[b] : offsets[b + 1]][::-1][:num_recent]
        expected = np.full((num_recent, 3), -1)
        expected[: len(newest)] = table[newest]
        assert row.tolist() == [*expected[:, 0], *expected[:, 1:].ravel()]


def test_item_features_are_neutral_for_unknown_items_and_count_training_events_only(
    synthetic_dataset, make_assembly
) -> None:
    assembly = make_assembly("decoder")
    tower = assembly.model.candidate_tower
    assert tower.item_sparse[OUT_OF_VOCABULARY, 0] == OUT_OF_VOCABULARY
    assert (tower.item_sparse[:FIRST_KNOWN, 1:] == -1).all()
    assert tower.item_sparse[START, 0] == -1
    assert (tower.item_dense[:FIRST_KNOWN] == 0).all()
    counts = training_counts(synthetic_dataset, assembly.features.tokenizer.vocabularies)
    events, split = synthetic_dataset.events, synthetic_dataset.split
    held_out = {*split.test.tolist(), *split.validation.tolist()}
    expected = dict.fromkeys(synthetic_dataset.catalogue.item_id.tolist(), 0)
    for p, profile in enumerate(events.profile_id.tolist()):
        first, last = events.offsets[p : p + 2].tolist()
        for item in events.item_id[first : first + int(0.8 * (last - first))].tolist():
            expected[item] += profile not in held_out
    assert counts[FIRST_KNOWN:].tolist() == list(expected.values())
    popularity = tower.item_dense[FIRST_KNOWN:, 0].double()
    assert abs(popularity.mean()) < 1e-6
    assert torch.argmax(popularity) == int(np.argmax(counts[FIRST_KNOWN:]))


def test_scaling_leaves_missing_numbers_at_zero() -> None:
    raw = np.array([1.0, 3.0, NO_NUMBER, np.nan], dtype=np.float32)
    assert mean_and_deviation(raw) == (2.0, 1.0)
    assert standardised(raw).tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert mean_and_deviation(raw[2:]) == (0.0, 1.0)
    assert scale(np.array([1e30, -np.inf]), 2.0, 1.0).tolist() == [MOST_DEVIATIONS, -MOST_DEVIATIONS]
    assert scale(np.array([5.0], np.float32), *mean_and_deviation(np.array([5.0, 5.0]))).tolist() == [0.0]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_saved_builder_builds_the_same_inputs(make_assembly, histories, tmp_path, tower) -> None:
    features = make_assembly(tower).features
    save_features(tmp_path, features)
    loaded = load_features(tmp_path)
    assert loaded.fields == features.fields
    assert loaded.config == features.config
    assert_same(loaded.profile_inputs(histories), features.profile_inputs(histories))


def test_the_servers_feature_library_needs_neither_torchrec_nor_a_client() -> None:
    names = "('torchrec', 'fbgemm_gpu', 'tritonclient', 'pytriton')"
    code = f"import sys, ranker.features.files; print([n for n in {names} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
