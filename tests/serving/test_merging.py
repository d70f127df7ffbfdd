"""A request's raw history is merged as training data are, and then cut to its window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.merging import merge_facets as stored_facets
from foundation.merging import merge_values as stored_values
from foundation.merging import run_starts as stored_starts
from foundation.schema import Columns, Facet, Schema
from foundation.window import window_start
from serving.contract import Contract, Field, Limits, Way
from serving.merging import check_merged, merge_values, run_starts
from serving.rank_request import History, RankRequest, wire_arrays
from serving.wire import facet_fields
from serving.wire_input import NO_NUMBER, RequestError

WINDOW, BLOCK = 6, 2
CONTRACT = Contract(
    model="marquee",
    facets=(
        Field("device", merged="first"),
        Field("seconds", "FP32", merged="sum"),
        Field("tags", max_values=2),
        Field("num_actions", "FP32", merged="sum"),
    ),
    context=(Field("device"),),
    profile=(),
    tasks=("watch",),
    log_rates=(0.0,),
    limits=Limits(window=WINDOW, block=BLOCK),
    merge_adjacent=True,
)
ACTIONS = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(st.none(), st.floats(0, 100, width=32))), max_size=30
)


def request_of(actions: list[tuple[int, float | None]], **facets) -> RankRequest:
    places = list(range(len(actions)))
    values = {
        "device": places,
        "seconds": [seconds for _, seconds in actions],
        "tags": [[place, -place] for place in places],
    }
    history = History([item for item, _ in actions], [100 * place for place in places], values | facets)
    return RankRequest(10_000, [1, 2], history)


@given(ACTIONS)
def test_merging_on_the_way_out_equals_merging_of_data(actions: list[tuple[int, float | None]]) -> None:
    arrays = wire_arrays(CONTRACT, [request_of(actions)])
    item_id = np.array([item for item, _ in actions], dtype=np.int64)
    seconds = np.array([NO_NUMBER if s is None else s for _, s in actions], np.float32)
    row = np.arange(len(actions))
    starts = stored_starts(item_id, np.array([0, len(actions)]))
    ways: dict[str, Way] = {field.name: field.merged for field in CONTRACT.facets}
    merged = stored_facets(
        {"device": row, "seconds": seconds, "tags": np.stack((row, -row), axis=1)}, ways, starts, len(row)
    )
    cut = int(window_start(len(starts), WINDOW, BLOCK))
    assert arrays["history_lengths"].tolist() == [len(starts) - cut]
    assert arrays["num_events_before"].tolist() == [cut]
    np.testing.assert_array_equal(arrays["history.item_id"], item_id[starts][cut:])
    np.testing.assert_array_equal(arrays["history.timestamp"], 100 * starts[cut:])
    for name, values in merged.items():
        np.testing.assert_array_equal(arrays[f"history.{name}"], values[cut:])
        assert arrays[f"history.{name}"].dtype == values.dtype
    CONTRACT.validate(arrays)


@given(ACTIONS, st.sampled_from(["first", "last", "sum"]))
def test_one_history_is_merged_by_the_same_rule(actions: list, way: Way) -> None:
    item_id = np.array([item for item, _ in actions], dtype=np.int64)
    seconds = np.array([NO_NUMBER if s is None else s for _, s in actions], np.float32)
    starts = run_starts(item_id)
    np.testing.assert_array_equal(starts, stored_starts(item_id, np.array([0, len(item_id)])))
    np.testing.assert_array_equal(merge_values(seconds, starts, way), stored_values(seconds, starts, way))


@given(ACTIONS)
def test_a_merged_history_may_be_sent_as_such(actions: list[tuple[int, float | None]]) -> None:
    wide = replace(CONTRACT, limits=Limits(window=100))
    sent = wire_arrays(wide, [request_of(actions)])
    history = History(
        sent["history.item_id"],
        sent["history.timestamp"],
        {field.name: sent[f"history.{field.name}"] for field in CONTRACT.facets},
    )
    again = wire_arrays(wide, [RankRequest(10_000, [1, 2], history)])
    assert all(np.array_equal(again[name], sent[name]) for name in sent)


def test_without_merging_everything_is_sent() -> None:
    plain = replace(CONTRACT, facets=CONTRACT.facets[:3], merge_adjacent=False)
    arrays = wire_arrays(plain, [request_of([(7, 1.0), (7, 2.0), (7, None)])])
    assert arrays["history.item_id"].tolist() == [7, 7, 7]
    assert arrays["history.seconds"].tolist() == [1, 2, float(NO_NUMBER)]


def test_a_negative_duration_is_named() -> None:
    plain = replace(CONTRACT, facets=CONTRACT.facets[:3], merge_adjacent=False)
    arrays = wire_arrays(plain, [request_of([(1, 2.0), (2, -1.5)])])
    with pytest.raises(RequestError, match=r"history\.seconds\[1\] is -1\.5; it must be at least 0"):
        plain.validate(arrays)
    with pytest.raises(RequestError, match=r"history\.seconds\[1\] is -1\.5; it must be at least 0"):
        wire_arrays(CONTRACT, [request_of([(1, 2.0), (1, -1.5)])])  # not hidden in their sum


def test_the_contract_says_how_facets_merge_and_keeps_it_as_json() -> None:
    schema = Schema(
        "tiny",
        Columns(),
        facets=(
            Facet("device", "categorical", "device", role="where"),
            Facet("seconds", "duration", "seconds", role="what"),
            Facet("tags", "multi", "tags", max_values=2, role="what"),
            Facet("num_actions", "numeric", "num_actions", role="what"),
        ),
        merge_adjacent=True,
    )
    assert facet_fields(schema) == CONTRACT.facets
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


def test_unmerged_neighbours_are_refused_within_a_request_alone() -> None:
    check_merged(np.array([1, 2, 2, 1]), np.array([2, 2]))
    check_merged(np.array([], dtype=np.int64), np.array([0, 0]))
    with pytest.raises(RequestError, match=r"history\.item_id\[2\].*2.*merge adjacent events"):
        check_merged(np.array([1, 2, 2, 1]), np.array([3, 1]))


@given(ACTIONS)
def test_what_the_client_sends_is_merged(actions: list[tuple[int, float | None]]) -> None:
    arrays = wire_arrays(CONTRACT, [request_of(actions)])
    check_merged(arrays["history.item_id"], arrays["history_lengths"])
