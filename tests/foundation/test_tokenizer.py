"""The token layout: request-time features of an event with the outcome of the one before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.raw_values import NO_NUMBER, NO_VALUE
from foundation.schema import KINDS, Columns, Facet, Schema
from foundation.time_facets import GAP_LOG_WIDTH, gap_bucket
from foundation.tokenizer import EventIds, Tokenizer, concatenate, history_tokens
from foundation.vocabulary import (
    FIRST_KNOWN,
    OUT_OF_VOCABULARY,
    PERIOD_S,
    START,
    NumericBuckets,
    Vocabularies,
    Vocabulary,
)
from foundation.window import span_rows, window_start

WEEK_S = 7 * 24 * 3600
MONDAY_NOON = 4 * 24 * 3600 + 12 * 3600  # 5 January 1970
FIRST_TIMESTAMP = MONDAY_NOON + 1000 * WEEK_S
NUM_PERIODS = 3

SCHEMA = Schema(
    "tiny",
    Columns(),
    facets=(
        Facet("season", "categorical", "season", role="when"),
        Facet("canvas", "categorical", "canvas", role="where"),
        Facet("rating", "numeric", "rating", role="what"),
        Facet("tags", "multi", "tags", max_values=3, role="what"),
    ),
)
VOCABULARIES = Vocabularies(
    items=Vocabulary(np.array([70, 50, 60])),
    facets={
        "season": Vocabulary(np.array([1, 2])),
        "canvas": Vocabulary(np.array([-5, 8])),
        "rating": NumericBuckets(np.array([2.5, 4.5])),
        "tags": Vocabulary(np.array([11, 12, 13])),
    },
    item_features={},
    profile_features={},
    first_timestamp=FIRST_TIMESTAMP,
    last_timestamp=FIRST_TIMESTAMP + NUM_PERIODS * PERIOD_S - 1,
    item_counts=np.array([0, 0, 3, 1, 2]),
)
TOKENIZER = Tokenizer(SCHEMA, VOCABULARIES)


def _column(facet_ids, name):
    return facet_ids[:, TOKENIZER.facet_columns.index(name)]


def _raw_events(num_events, seed=0):
    """Raw columns of random events, unknown and missing values among them."""
    rng = np.random.default_rng(seed)
    facets = {
        "season": rng.choice([1, 2, 99], num_events),
        "canvas": rng.choice([-5, 8, 99, NO_VALUE], num_events),
        "rating": rng.choice(np.array([1, 3, 5, NO_NUMBER], np.float32), num_events),
        "tags": rng.choice([11, 12, 13, 99, NO_VALUE], (num_events, 3)),
    }
    timestamp = FIRST_TIMESTAMP + np.cumsum(rng.integers(0, 10**6, num_events))
    return rng.choice([50, 60, 70, 999], num_events), timestamp, facets


def _cut(raw, selected):
    item_id, timestamp, facets = raw
    return item_id[selected], timestamp[selected], {name: column[selected] for name, column in facets.items()}


def _tokens(raw, stop=None):
    """Tokens of one request at event `stop` (default: the last), whose history is every event before it."""
    stop = len(raw[0]) - 1 if stop is None else stop
    history = TOKENIZER.event_ids(*_cut(raw, slice(stop)))
    _, timestamp, facets = _cut(raw, slice(stop, stop + 1))
    return history_tokens(TOKENIZER, history, np.array([0, stop]), TOKENIZER.request_ids(timestamp, facets))


def test_columns_join_request_side_gap_and_outcome_side():
    request_side = ("hour_of_week", "date", "season", "canvas")
    outcome_side = ("rating", "tags[0]", "tags[1]", "tags[2]")
    assert TOKENIZER.facet_columns == (*request_side, "gap", *outcome_side)


def test_a_token_written_out():
    item_id = np.array([60, 50])
    timestamp = np.array([FIRST_TIMESTAMP, FIRST_TIMESTAMP + PERIOD_S])
    facets = {
        "season": np.array([1, 2]),
        "canvas": np.array([8, 99]),
        "rating": np.array([3, 5], np.float32),
        "tags": np.array([[12, NO_VALUE, NO_VALUE], [11, 13, 99]]),
    }
    facet_ids, item_ids = TOKENIZER.assemble(
        TOKENIZER.event_ids(item_id, timestamp, facets), np.array([0, 1]), np.array([-1, 0])
    )
    hour = 1  # behind the padding row; Monday noon is hour 12
    date = hour + FIRST_KNOWN + 168
    gap = date + FIRST_KNOWN + NUM_PERIODS
    season = gap + FIRST_KNOWN + 72
    canvas = season + FIRST_KNOWN + 2
    rating = canvas + FIRST_KNOWN + 2
    tags = rating + FIRST_KNOWN + 3
    month_gap = FIRST_KNOWN + int(np.log(PERIOD_S) / 0.301)
    assert facet_ids.tolist() == [
        [hour + 14, date + 2, season + 2, canvas + 3, gap + START, rating + START, tags + START, 0, 0],
        [hour + 14, date + 3, season + 3, canvas, gap + month_gap, rating + 3, tags + 3, 0, 0],
    ]
    assert item_ids.tolist() == [START, FIRST_KNOWN + 2]
    assert TOKENIZER.num_facet_rows == tags + FIRST_KNOWN + 3
    assert facet_ids.dtype == item_ids.dtype == np.int64


def test_every_column_has_rows_of_its_own_behind_the_padding():
    raw = _raw_events(500)
    ids = TOKENIZER.event_ids(*raw)
    span = span_rows(np.array([0]), np.array([500]))
    facet_ids, _ = TOKENIZER.assemble(ids, span.rows, span.previous)
    owners: dict[int, str] = {}
    for name, column in zip(TOKENIZER.facet_columns, facet_ids.T, strict=True):
        for row in np.unique(column[column > 0]).tolist():
            assert owners.setdefault(row, name.split("[")[0]) == name.split("[")[0]
    assert facet_ids.min() == 0
    assert facet_ids.max() < TOKENIZER.num_facet_rows


@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(0, 1000))
def test_ragged_histories_equal_each_alone_and_end_with_the_request(lengths, seed):
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    events = _raw_events(int(offsets[-1]), seed)
    requests = _raw_events(len(lengths), seed + 1)
    tokens = history_tokens(
        TOKENIZER, TOKENIZER.event_ids(*events), offsets, TOKENIZER.request_ids(*requests[1:])
    )
    assert tokens.lengths.tolist() == [length + 1 for length in lengths]
    stops = np.cumsum(tokens.lengths)
    for b, (start, stop) in enumerate(zip(stops - tokens.lengths, stops, strict=True)):
        alone = history_tokens(
            TOKENIZER,
            TOKENIZER.event_ids(*_cut(events, slice(offsets[b], offsets[b + 1]))),
            np.array([0, lengths[b]]),
            TOKENIZER.request_ids(*_cut(requests, slice(b, b + 1))[1:]),
        )
        np.testing.assert_array_equal(tokens.facet_ids[start:stop], alone.facet_ids)
        np.testing.assert_array_equal(tokens.item_ids[start:stop], alone.item_ids)
        assert alone.item_ids[0] == START


@given(st.integers(1, 12), st.integers(0, 1000))
def test_a_request_at_event_t_reads_the_same_as_training_on_the_history_up_to_t(num_events, seed):
    raw = _raw_events(num_events, seed)
    span = span_rows(np.array([0]), np.array([num_events]))
    facet_ids, item_ids = TOKENIZER.assemble(TOKENIZER.event_ids(*raw), span.rows, span.previous)
    request = _tokens(raw)
    np.testing.assert_array_equal(request.facet_ids, facet_ids)
    np.testing.assert_array_equal(request.item_ids, item_ids)


@given(st.integers(2, 20), st.integers(0, 1000))
def test_appending_an_event_changes_no_token_but_the_last(num_events, seed):
    raw = _raw_events(num_events, seed)
    before, after = _tokens(raw, num_events - 2), _tokens(raw, num_events - 1)
    np.testing.assert_array_equal(before.facet_ids[:-1], after.facet_ids[: num_events - 2])
    np.testing.assert_array_equal(before.item_ids[:-1], after.item_ids[: num_events - 2])


@given(st.integers(6, 30))
def test_a_front_drop_starts_anew_at_the_first_kept_event(num_events):
    raw = _raw_events(num_events)
    start = int(window_start(num_events - 1, window=4, block=2))
    whole, kept = _tokens(raw), _tokens(_cut(raw, slice(start, None)))
    assert start > 0
    assert len(kept.item_ids) <= 4 + 1
    np.testing.assert_array_equal(whole.facet_ids[start + 1 :], kept.facet_ids[1:])
    request_side = [
        TOKENIZER.facet_columns.index(name) for name in ("hour_of_week", "date", "season", "canvas")
    ]
    np.testing.assert_array_equal(whole.facet_ids[start, request_side], kept.facet_ids[0, request_side])
    empty = _tokens(raw, 0)
    others = [i for i in range(len(TOKENIZER.facet_columns)) if i not in request_side]
    np.testing.assert_array_equal(kept.facet_ids[0, others], empty.facet_ids[0, others])
    assert kept.item_ids[0] == START


def test_the_what_of_an_event_is_in_no_token_up_to_its_own():
    raw = _raw_events(12)
    reference = _tokens(raw)
    for t in range(11):
        item_id, timestamp, facets = (_cut(raw, slice(None))[0].copy(), raw[1], dict(raw[2]))
        item_id[t] = 50 if item_id[t] != 50 else 60
        facets["rating"] = facets["rating"].copy()
        facets["rating"][t] = 1 if facets["rating"][t] != 1 else 5
        changed = _tokens((item_id, timestamp, facets))
        differs = (changed.facet_ids != reference.facet_ids).any(1) | (changed.item_ids != reference.item_ids)
        assert differs.nonzero()[0].tolist() == [t + 1]


@given(st.integers(-500, 500), st.integers(0, 1000))
def test_a_shift_by_weeks_leaves_gap_and_hour_of_week_as_they_are(weeks, seed):
    item_id, timestamp, facets = _raw_events(15, seed)
    here = _tokens((item_id, timestamp, facets)).facet_ids
    there = _tokens((item_id, timestamp + weeks * WEEK_S, facets)).facet_ids
    unchanged = [name for name in TOKENIZER.facet_columns if name != "date"]
    for name in unchanged:
        np.testing.assert_array_equal(_column(here, name), _column(there, name))


@given(st.integers(-(10**6), 10**11))
def test_gap_buckets_are_hstu_s(seconds):
    bucket = int(gap_bucket(np.array([seconds]))[0])
    assert 0 <= bucket <= 71
    if 1 <= seconds < np.exp(71 * GAP_LOG_WIDTH):
        assert np.exp(bucket * GAP_LOG_WIDTH) <= seconds * (1 + 1e-12)
        assert seconds < np.exp((bucket + 1) * GAP_LOG_WIDTH) * (1 + 1e-12)
    elif seconds < 1:
        assert bucket == 0


@pytest.mark.parametrize("seconds", [-(10**9), -1, 3 * PERIOD_S, 10**12, 2**62])
def test_dates_outside_the_known_span_take_its_ends(seconds):
    facets = {"season": np.array([1]), "canvas": np.array([8])}
    inside = [FIRST_TIMESTAMP, FIRST_TIMESTAMP + (NUM_PERIODS - 1) * PERIOD_S]
    first, last, outside = (
        TOKENIZER.request_ids(np.array([timestamp]), facets).request_side[0, 1]
        for timestamp in (*inside, FIRST_TIMESTAMP + seconds)
    )
    assert first < last
    assert outside == (first if seconds < 0 else last)


def test_unknown_values_take_the_out_of_vocabulary_row_and_missing_ones_none():
    def request(canvas):
        facets = {"season": np.array([1]), "canvas": np.array([canvas])}
        return int(TOKENIZER.request_ids(np.array([FIRST_TIMESTAMP]), facets).request_side[0, 3])

    assert request(12345) == request(-12345) == request(8) - FIRST_KNOWN - 1
    assert request(NO_VALUE) == 0


def test_unknown_and_missing_items_are_out_of_vocabulary():
    _, timestamp, facets = _raw_events(3)
    ids = TOKENIZER.event_ids(np.array([999, NO_VALUE, 70]), timestamp, facets)
    assert ids.item.tolist() == [OUT_OF_VOCABULARY, OUT_OF_VOCABULARY, FIRST_KNOWN]


def test_concatenated_events_are_those_of_both():
    raw = _raw_events(7)
    whole = TOKENIZER.event_ids(*raw)
    halves = [TOKENIZER.event_ids(*_cut(raw, part)) for part in (slice(3), slice(3, None))]
    for joined, expected in zip(concatenate(*halves), whole, strict=True):
        np.testing.assert_array_equal(joined, expected)


def test_a_schema_without_facets_still_has_time():
    tokenizer = Tokenizer(Schema("bare", Columns()), dataclasses.replace(VOCABULARIES, facets={}))
    ids = tokenizer.event_ids(np.array([50, 60]), np.array([FIRST_TIMESTAMP] * 2), {})
    facet_ids, item_ids = tokenizer.assemble(ids, np.array([0, 1]), np.array([-1, 0]))
    assert tokenizer.facet_columns == ("hour_of_week", "date", "gap")
    assert facet_ids.shape == (2, 3)
    assert item_ids.tolist() == [START, FIRST_KNOWN + 1]


def test_facets_that_do_not_fit_are_refused():
    item_id, timestamp, facets = _raw_events(4)
    with pytest.raises(ValueError, match="facet 'canvas' is missing"):
        TOKENIZER.event_ids(item_id, timestamp, {name: facets[name] for name in facets if name != "canvas"})
    with pytest.raises(ValueError, match=r"facet 'tags' must have shape \(4, 3\), got \(4, 2\)"):
        TOKENIZER.event_ids(item_id, timestamp, facets | {"tags": facets["tags"][:, :2]})


@pytest.mark.parametrize("offsets", [[0, 1], [0, 1, 2], [1, 1, 3], [0, 4, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    ids = TOKENIZER.event_ids(*_raw_events(3))
    requests = TOKENIZER.request_ids(*_raw_events(2)[1:])
    with pytest.raises(ValueError, match="history_offsets must"):
        history_tokens(TOKENIZER, ids, np.array(offsets), requests)


def test_a_world_of_every_facet_kind_is_tokenised(
    synthetic_dataset, synthetic_tokenizer, synthetic_ids: EventIds
):
    span = span_rows(synthetic_dataset.offsets[:-1], synthetic_dataset.offsets[1:])
    facet_ids, item_ids = synthetic_tokenizer.assemble(synthetic_ids, span.rows, span.previous)
    assert {facet.kind for facet in synthetic_dataset.schema.facets} == set(KINDS)
    assert (item_ids == START).sum() == synthetic_dataset.num_profiles
    for name, column in zip(synthetic_tokenizer.facet_columns, facet_ids.T, strict=True):
        assert len(np.unique(column)) > 1, name
