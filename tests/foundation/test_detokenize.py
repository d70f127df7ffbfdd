"""Tokens back to raw values: every facet of every event comes back, as far as its buckets go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.detokenizer import Ranges, Values
from foundation.raw_values import NO_NUMBER, NO_VALUE
from foundation.schema import Columns, Facet, Schema
from foundation.time_facets import age_bucket, gap_bucket
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import (
    DURATION_BOUNDARIES,
    FIRST_KNOWN,
    OUT_OF_VOCABULARY,
    PERIOD_S,
    START,
    NumericBuckets,
    Vocabularies,
    Vocabulary,
)

FIRST_TIMESTAMP = 1_000_000_000
DAY_S = 86_400
SCHEMA = Schema(
    "tiny",
    Columns(launched_at="launched_at"),
    facets=(
        Facet("device", "categorical", "device", role="where"),
        Facet("waited", "duration", "waited", role="when"),
        Facet("rating", "numeric", "rating", role="what"),
        Facet("watched", "duration", "watched", role="what"),
        Facet("tags", "multi", "tags", max_values=2, role="what"),
    ),
)
VOCABULARIES = Vocabularies(
    items=Vocabulary(np.array([70, 50, 60])),
    facets={
        "device": Vocabulary(np.array([-5, 8])),
        "waited": NumericBuckets(np.array([10.0, 20.0])),
        "rating": NumericBuckets(np.array([2.5, 4.5])),
        "watched": NumericBuckets(np.array(DURATION_BOUNDARIES)),
        "tags": Vocabulary(np.array([11, 12, 13])),
    },
    item_features={},
    profile_features={},
    first_timestamp=FIRST_TIMESTAMP,
    last_timestamp=FIRST_TIMESTAMP + 3 * PERIOD_S - 1,
    item_counts=np.array([0, 0, 3, 1, 2]),
    launched_at=np.array(
        [NO_VALUE, NO_VALUE, FIRST_TIMESTAMP - 400 * DAY_S, FIRST_TIMESTAMP + 20 * DAY_S, NO_VALUE]
    ),
)
TOKENIZER = Tokenizer(SCHEMA, VOCABULARIES)
ITEMS = (70, 50, 60, 999)


def _seconds(most: int) -> st.SearchStrategy[float]:
    return st.one_of(st.just(float(NO_NUMBER)), st.floats(0, most, width=32))


EVENT = st.fixed_dictionaries(
    {
        "item": st.sampled_from(ITEMS),
        "pause": st.integers(0, 60 * DAY_S),
        "device": st.sampled_from([-5, 8, 99, NO_VALUE]),
        "waited": _seconds(100),
        "rating": st.one_of(st.just(float(NO_NUMBER)), st.floats(0, 6, width=32)),
        "watched": _seconds(2**22),
        "tags": st.tuples(*[st.sampled_from([11, 12, 13, 99, NO_VALUE])] * 2),
    }
)


def _columns(events: list[dict]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    number = {"waited", "rating", "watched"}
    facets = {
        facet.name: np.array(
            [event[facet.name] for event in events], np.float32 if facet.name in number else np.int64
        )
        for facet in SCHEMA.facets
    }
    timestamp = FIRST_TIMESTAMP - 5 * DAY_S + np.cumsum([event["pause"] for event in events])
    return np.array([event["item"] for event in events]), timestamp, facets


def _check_values(decoded: Values | Ranges, raw: np.ndarray, known: list[int]) -> None:
    assert isinstance(decoded, Values)
    is_known = np.isin(raw, known)
    np.testing.assert_array_equal(decoded.value[is_known], raw[is_known])
    np.testing.assert_array_equal(decoded.row == -1, raw == NO_VALUE)
    np.testing.assert_array_equal(decoded.row == OUT_OF_VOCABULARY, ~is_known & (raw != NO_VALUE))


def _check_ranges(decoded: Values | Ranges, raw: np.ndarray, missing: np.ndarray) -> None:
    assert isinstance(decoded, Ranges)
    np.testing.assert_array_equal(decoded.row == -1, missing)
    np.testing.assert_array_equal(np.isnan(decoded.low), missing)
    there = ~missing
    assert (decoded.low[there] <= raw[there]).all()
    assert (raw[there] < decoded.high[there]).all()


@given(st.lists(EVENT, min_size=1, max_size=12))
def test_every_facet_of_every_event_comes_back(events: list[dict]) -> None:
    item_id, timestamp, facets = _columns(events)
    rows = np.arange(len(events))
    ids = TOKENIZER.event_ids(item_id, timestamp, facets)
    # The token of the event after holds what became of an event; after the last comes a request.
    request = TOKENIZER.request_ids(
        timestamp[-1:], {name: facets[name][-1:] for name in ("device", "waited")}
    )
    all_ids = type(ids)(*(np.concatenate(pair) for pair in zip(ids, request, strict=True)))
    facet_ids, item_ids = TOKENIZER.assemble(all_ids, np.append(rows, len(rows)), np.arange(-1, len(rows)))
    own = TOKENIZER.detokenize(facet_ids[:-1], item_ids[:-1])
    after = TOKENIZER.detokenize(facet_ids[1:], item_ids[1:])
    assert set(own) == {"item", "hour_of_week", "date", "gap", "item_age", *(f.name for f in SCHEMA.facets)}

    _check_values(own["device"], facets["device"], [-5, 8])
    _check_ranges(own["waited"], facets["waited"], facets["waited"] == NO_NUMBER)
    _check_values(own["hour_of_week"], (timestamp // 3600 + 72) % 168, list(range(168)))
    _check_ranges(own["date"], timestamp, np.zeros(len(rows), dtype=bool))
    _check_values(after["item"], item_id, [70, 50, 60])
    _check_values(after["tags"], facets["tags"], [11, 12, 13])
    for name in ("rating", "watched"):
        _check_ranges(after[name], facets[name], facets[name] == NO_NUMBER)
    launched = {70: FIRST_TIMESTAMP - 400 * DAY_S, 50: FIRST_TIMESTAMP + 20 * DAY_S}
    age = timestamp - np.array([launched.get(item, 0) for item in item_id.tolist()])
    _check_ranges(after["item_age"], np.maximum(age, 0), ~np.isin(item_id, list(launched)))
    gaps = own["gap"]
    assert isinstance(gaps, Ranges)
    assert (gaps.low[1:] <= np.diff(timestamp)).all()
    assert (np.diff(timestamp) < gaps.high[1:]).all()
    # Before the first event there is none.
    for name in ("item", "gap", "rating", "watched", "item_age"):
        assert own[name].row[0] == START
    assert own["tags"].row[0].tolist() == [START, -1]


def test_ages_before_the_launch_and_of_unknown_items() -> None:
    item_id = np.array([50, 70, 60, 999])
    timestamp = np.array([FIRST_TIMESTAMP, FIRST_TIMESTAMP, FIRST_TIMESTAMP, FIRST_TIMESTAMP])
    _, _, facets = _columns([{"item": 50, "pause": 0, **_PLAIN}] * 4)
    ids = TOKENIZER.event_ids(item_id, timestamp, facets)
    facet_ids, item_ids = TOKENIZER.assemble(ids, np.full(4, 0), np.arange(4))
    ages = TOKENIZER.detokenize(facet_ids, item_ids)["item_age"]
    assert ages.row.tolist() == [FIRST_KNOWN, FIRST_KNOWN + int(np.log(401) / 0.301), -1, -1]


_PLAIN = {"device": 8, "waited": 1.0, "rating": 1.0, "watched": 1.0, "tags": (11, 12)}


def test_age_buckets_written_out() -> None:
    days = np.array([-3, 0, 0.3, 0.4, 1, 2, 400, 10**6])
    expected = [0, 0, 0, 1, 2, 3, 19, 35]
    assert age_bucket((days * DAY_S).astype(np.int64)).tolist() == expected


@given(st.integers(0, 10**11))
def test_wider_gaps_and_ages_are_in_no_lower_bucket(seconds: int) -> None:
    for bucket in (gap_bucket, age_bucket):
        low, high = bucket(np.array([seconds, seconds + 3600])).tolist()
        assert low <= high


@pytest.mark.parametrize("channels", [(), ("gap",), ("hour_of_week",), ("date", "gap")])
def test_only_declared_channels_make_columns(channels: tuple) -> None:
    schema = Schema("tiny", Columns(), SCHEMA.facets, time_channels=channels)
    tokenizer = Tokenizer(schema, VOCABULARIES)
    absolute = tuple(channel for channel in channels if channel != "gap")
    gap = ("gap",) if "gap" in channels else ()
    columns = tokenizer.facet_columns
    assert columns[tokenizer.context_columns] == (*absolute, "device", "waited")
    assert columns[tokenizer.request_columns] == (*absolute, "device", "waited", *gap)
    assert columns[tokenizer.outcome_columns] == ("rating", "watched", "tags[0]", "tags[1]", "item_age")
    item_id, timestamp, facets = _columns([{"item": 50, "pause": 60, **_PLAIN}] * 3)
    ids = tokenizer.event_ids(item_id, timestamp, facets)
    facet_ids, item_ids = tokenizer.assemble(ids, np.arange(3), np.arange(-1, 2))
    whole, _ = TOKENIZER.assemble(
        TOKENIZER.event_ids(item_id, timestamp, facets), np.arange(3), np.arange(-1, 2)
    )
    assert facet_ids.shape == (3, len(columns))
    decoded = tokenizer.detokenize(facet_ids, item_ids)
    reference = TOKENIZER.detokenize(whole, item_ids)
    for name, values in decoded.items():
        np.testing.assert_array_equal(values.row, reference[name].row)


def test_ids_and_order_only() -> None:
    vocabularies = Vocabularies(
        VOCABULARIES.items, {}, {}, {}, FIRST_TIMESTAMP, FIRST_TIMESTAMP, np.zeros(5, np.int64)
    )
    tokenizer = Tokenizer(Schema("bare", Columns(), time_channels=()), vocabularies)
    ids = tokenizer.event_ids(np.array([50, 60]), np.array([1, 2]), {})
    facet_ids, item_ids = tokenizer.assemble(ids, np.array([0, 1]), np.array([-1, 0]))
    # One column that says nothing: a lookup of no columns at all has no gradient.
    assert tokenizer.facet_columns == tokenizer.facet_columns[tokenizer.context_columns] == ("no_context",)
    assert facet_ids.tolist() == [[0], [0]]
    assert tokenizer.request_ids(np.array([3]), {}).request_side.tolist() == [[0]]
    assert tokenizer.num_facet_rows == 1
    assert set(tokenizer.detokenize(facet_ids, item_ids)) == {"item"}
    assert tokenizer.detokenize(facet_ids, item_ids)["item"].row.tolist() == [START, FIRST_KNOWN + 1]


def test_a_row_of_another_column_is_named() -> None:
    facet_ids = np.full((1, len(TOKENIZER.facet_columns)), TOKENIZER.num_facet_rows - 1)
    with pytest.raises(ValueError, match=r"row \d+ of the joint table is none of 'hour_of_week'"):
        TOKENIZER.detokenize(facet_ids, np.array([START]))
