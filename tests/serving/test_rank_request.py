"""From a caller's request to wire arrays."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.vocabulary import hash_string as stored_hash
from foundation.window import window_start as stored_window_start
from serving.contract import Contract, Field, Limits
from serving.rank_request import History, RankRequest, window_start, wire_arrays
from serving.raw_columns import column, hash_string
from serving.wire_input import NO_NUMBER, NO_VALUE

CONTRACT = Contract(
    model="marquee",
    facets=(Field("rating", "FP32"), Field("languages", "INT64", 2)),
    context=(Field("canvas"),),
    profile=(Field("country"), Field("age", "FP32"), Field("spoken", "INT64", 3)),
    tasks=("watch",),
    log_rates=(0.0,),
    limits=Limits(window=6, block=2),
    candidate=(Field("retrieval", "FP32"), Field("row")),
)


def request_of(num_events: int, num_events_before: int = 0, **fields) -> RankRequest:
    times = np.arange(num_events) * 100
    facets = {"rating": np.arange(num_events, dtype=np.float32), "languages": [[5]] * num_events}
    history = History(np.arange(num_events), times, facets)
    return RankRequest(
        **{"timestamp": 10_000, "candidates": [1, 2], "history": history, **fields},
        num_events_before=num_events_before,
    )


@given(st.text())
def test_strings_hash_as_in_ingestion(text: str):
    assert hash_string(text) == stored_hash(text)


@given(st.integers(0, 2_000), st.integers(1, 300), st.integers(1, 300))
def test_the_window_starts_as_in_training(num_events: int, window: int, block: int):
    assert window_start(num_events, window, block) == stored_window_start(num_events, window, block)


@given(st.integers(0, 40))
def test_histories_are_cut_to_their_window(num_events: int):
    arrays = wire_arrays(CONTRACT, [request_of(num_events)])
    start = int(stored_window_start(num_events, 6, 2))
    assert arrays["num_events_before"].tolist() == [start]
    assert arrays["history_lengths"].tolist() == [num_events - start]
    assert arrays["history.item_id"].tolist() == list(range(start, num_events))
    assert arrays["history.rating"].tolist() == list(range(start, num_events))
    assert arrays["history.languages"].shape == (num_events - start, 2)
    CONTRACT.validate(arrays)


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_history_at_hand_in_part_gives_what_the_whole_gives(num_dropped: int, num_events: int):
    """A caller may keep the newest events only, as long as it keeps a window of them."""
    dropped = min(num_dropped, int(stored_window_start(num_events, 6, 2)))
    whole = wire_arrays(CONTRACT, [request_of(num_events)])
    history = request_of(num_events).history
    part = History(
        history.item_id[dropped:],
        history.timestamp[dropped:],
        {name: values[dropped:] for name, values in history.facets.items()},
    )
    arrays = wire_arrays(CONTRACT, [request_of(0, dropped, history=part)])
    assert all(np.array_equal(arrays[name], whole[name]) for name in whole)


def test_several_requests_lie_end_to_end():
    arrays = wire_arrays(CONTRACT, [request_of(3), request_of(0), request_of(5, candidates=["a", 7, "b"])])
    assert arrays["history_lengths"].tolist() == [3, 0, 5]
    assert arrays["candidate_lengths"].tolist() == [2, 2, 3]
    assert arrays["history.item_id"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert arrays["candidate.item_id"].tolist() == [1, 2, 1, 2, stored_hash("a"), 7, stored_hash("b")]
    CONTRACT.validate(arrays)


def test_what_is_left_out_has_no_value():
    arrays = wire_arrays(CONTRACT, [request_of(2, profile={"country": "NL", "spoken": [4]})])
    assert arrays["profile.country"].tolist() == [stored_hash("NL")]
    assert arrays["profile.spoken"].tolist() == [[4, NO_VALUE, NO_VALUE]]
    assert arrays["profile.age"].tolist() == [NO_NUMBER]
    assert arrays["request.canvas"].tolist() == [NO_VALUE]
    assert arrays["candidate.retrieval"].tolist() == [NO_NUMBER] * 2
    assert arrays["candidate.row"].tolist() == [NO_VALUE] * 2


def test_candidate_features_lie_beside_their_candidates():
    arrays = wire_arrays(
        CONTRACT,
        [
            request_of(1, candidate_features={"retrieval": [0.5, None], "row": ["a", 3]}),
            request_of(1, candidates=[7], candidate_features={"retrieval": np.array([2.0])}),
        ],
    )
    assert arrays["candidate.item_id"].tolist() == [1, 2, 7]
    assert arrays["candidate.retrieval"].tolist() == [0.5, NO_NUMBER, 2.0]
    assert arrays["candidate.retrieval"].dtype == np.float32
    assert arrays["candidate.row"].tolist() == [stored_hash("a"), 3, NO_VALUE]
    CONTRACT.validate(arrays)


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        (Field("id"), [1, None, True, "x"], [1, NO_VALUE, 1, stored_hash("x")]),
        (Field("id"), np.array([3, 4], np.int32), [3, 4]),
        (Field("id"), np.array([3], np.uint64), [3]),
        (Field("id"), [], []),
        (Field("n", "FP32"), [1, None, 2.5], [1, NO_NUMBER, 2.5]),
        (Field("n", "FP32"), np.array([1, 2], np.int16), [1, 2]),
        (
            Field("m", "INT64", 2),
            [[1], None, ["x", 2, 3]],
            [[1, NO_VALUE], [NO_VALUE] * 2, [stored_hash("x"), 2]],
        ),
        (Field("m", "INT64", 2), np.array([[1, 2, 3]]), [[1, 2]]),
        (Field("m", "INT64", 2), [[None, 1, None, 2, 3], [None]], [[1, 2], [NO_VALUE] * 2]),
    ],
)
def test_values_of_every_kind_become_columns(field: Field, values, expected):
    found = column("here", field, values)
    assert found.dtype == (np.float32 if field.dtype == "FP32" else np.int64)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": [1.5]}, "candidates is 1.5; it must be an integer, a string or None"),
        ({"candidates": [2**63]}, "candidates is 9223372036854775808; it must fit 64 signed bits"),
        ({"candidates": "abc"}, "candidates is 'abc'; it must be a list or an array"),
        ({"timestamp": "now"}, "timestamp is ['now']; it must be whole unix seconds"),
        ({"timestamp": 978_300_055.5}, "timestamp is [978300055.5]; it must be whole unix seconds"),
        (
            {"history": History([1], [None], {"rating": [1.0], "languages": [[1]]})},
            "history.timestamp is [None]",
        ),
        ({"context": {"row": 3}}, "context has an unknown field 'row'; known are canvas"),
        ({"context": [3]}, "context is [3]; it must be a mapping from names to values"),
        ({"profile": None}, "profile is None; it must be a mapping"),
        ({"history": History([1], [1], cast(Any, [1.0]))}, "history.facets is [1.0]; it must be a mapping"),
        ({"history": History(cast(Any, 1), [1])}, "history.item_id is 1; it must be a list or an array"),
        (
            {"history": History([1], cast(Any, None), {"rating": [1.0], "languages": [[1]]})},
            "history.timestamp is None; it must be a list or an array",
        ),
        (
            {"candidate_features": {"row": [1, 2, 3]}},
            "candidate_features.row has 3 values; there are 2 candidates",
        ),
        (
            {"candidate_features": {"position": [0, 1]}},
            "candidate_features has an unknown field 'position'; known are retrieval, row",
        ),
        (
            {"candidate_features": {"retrieval": ["high", 1]}},
            "candidate_features.retrieval is 'high'; it must be a number or None",
        ),
        ({"candidate_features": {"row": 3}}, "candidate_features.row is 3; it must be a list or an array"),
        ({"candidate_features": [3]}, "candidate_features is [3]; it must be a mapping"),
        ({"profile": {"age": "old"}}, "profile.age is 'old'; it must be a number or None"),
        ({"profile": {"spoken": 3}}, "profile.spoken is 3; it must be a list or None"),
        ({"history": History([1], [1], {"rating": [1.0]})}, "history.facets has no 'languages'"),
        (
            {"history": History([1], [1, 2], {"rating": [1.0], "languages": [[1]]})},
            "history.timestamp has 2 values",
        ),
    ],
)
def test_what_cannot_be_sent_is_named(change: dict, message: str):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
        wire_arrays(CONTRACT, [request_of(1, **change)])
    assert message in str(caught.value)


@pytest.mark.parametrize("wrong", ["3", None, 1.5, True, -1, 2**63 - 1])
def test_events_before_are_a_number_of_events(wrong):
    message = rf"num_events_before is {wrong!r}; it must be a whole number from 0 to "
    with pytest.raises(ValueError, match=message):
        wire_arrays(CONTRACT, [request_of(1, wrong)])
    arrays = wire_arrays(CONTRACT, [request_of(1, cast(int, np.int32(40)))])
    assert arrays["num_events_before"].tolist() == [40]


def test_a_call_without_requests_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        wire_arrays(CONTRACT, [])


def test_requests_are_read_from_json():
    text = """{
        "timestamp": 5,
        "candidates": [1, "x"],
        "history": {"item_id": [1], "timestamp": [2], "facets": {"rating": [null], "languages": [[]]}},
        "profile": {"age": 3},
        "candidate_features": {"retrieval": [null, 0.5], "row": ["a", "b"]}
    }"""
    arrays = wire_arrays(CONTRACT, [RankRequest.from_json(json.loads(text))])
    assert arrays["history.rating"].tolist() == [NO_NUMBER]
    assert arrays["profile.age"].tolist() == [3]
    assert arrays["candidate.retrieval"].tolist() == [NO_NUMBER, 0.5]
    assert arrays["candidate.row"].tolist() == [stored_hash("a"), stored_hash("b")]
    for wrong, message in (
        ('{"timestamp": 5}', "no 'candidates'"),
        ('{"time": 5}', "unknown field 'time'"),
        ("[1]", r"request is \[1\]; it must be a mapping from names to values"),
        ('{"timestamp": 5, "candidates": [1], "history": [1]}', r"history is \[1\]; it must be a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            RankRequest.from_json(json.loads(wrong))
