"""Lookups against plain Python, and what vocabularies are built from."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from foundation.dataset import Dataset, Events
from foundation.split import training_mask
from foundation.vocabulary import (
    FIRST_KNOWN,
    NO_NUMBER,
    NO_VALUE,
    OUT_OF_VOCABULARY,
    NumericBuckets,
    Vocabularies,
    Vocabulary,
    build_vocabularies,
    hash_string,
    hash_strings,
)

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)


@given(st.lists(INT64, unique=True, max_size=30), st.lists(INT64, max_size=30))
def test_lookup_agrees_with_a_dictionary(keys: list[int], others: list[int]) -> None:
    rows = {key: row + FIRST_KNOWN for row, key in enumerate(keys)}
    raw = np.array([*keys, *others, NO_VALUE], dtype=np.int64)
    expected = [rows.get(value, OUT_OF_VOCABULARY) for value in raw[:-1].tolist()] + [-1]
    vocabulary = Vocabulary(np.array(keys, dtype=np.int64))
    assert vocabulary.lookup(raw).tolist() == expected
    assert vocabulary.num_rows == len(keys) + 2


def test_lookup_keeps_the_shape() -> None:
    rows = Vocabulary(np.array([7, 3])).lookup(np.array([[3, NO_VALUE], [7, 8]]))
    assert rows.tolist() == [[3, -1], [2, 0]]
    assert rows.dtype == np.int64


def test_a_value_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="unique"):
        Vocabulary(np.array([1, 2, 1]))


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), unique=True, max_size=10).map(sorted),
    st.lists(st.floats(-2e6, 2e6, width=32), max_size=20),
)
def test_buckets_agree_with_bisection(boundaries: list[float], numbers: list[float]) -> None:
    buckets = NumericBuckets(np.array(boundaries))
    raw = np.array([*boundaries, *numbers], dtype=np.float32)
    expected = [bisect_right(boundaries, number) + FIRST_KNOWN for number in raw.tolist()]
    assert buckets.lookup(raw).tolist() == expected
    assert all(row < buckets.num_rows for row in expected)


def test_numbers_that_are_none() -> None:
    raw = np.array([np.nan, NO_NUMBER, -np.inf, np.inf], dtype=np.float32)
    assert NumericBuckets(np.array([0.5])).lookup(raw).tolist() == [0, -1, 2, 3]


def test_a_string_is_its_xxh3_hash_as_a_signed_integer() -> None:
    for text in ("", "Amélie (2001)", "1m_1"):
        assert hash_string(text) % 2**64 == xxhash.xxh3_64_intdigest(text.encode())
        assert -(2**63) <= hash_string(text) < 2**63
    assert hash_strings(["a", "b"]).tolist() == [hash_string("a"), hash_string("b")]


def test_items_are_the_catalogue_in_its_order(synthetic_dataset: Dataset) -> None:
    items = build_vocabularies(synthetic_dataset).items
    ids = synthetic_dataset.catalogue.item_id
    assert items.lookup(ids).tolist() == list(range(FIRST_KNOWN, len(ids) + FIRST_KNOWN))


def with_facet(dataset: Dataset, name: str, values: np.ndarray) -> Dataset:
    events: Events = replace(dataset.events, facets={**dataset.events.facets, name: values})
    return replace(dataset, events=events)


def test_facet_values_seen_only_outside_the_training_events_are_out_of_vocabulary(
    synthetic_dataset: Dataset,
) -> None:
    seen = training_mask(synthetic_dataset)
    devices = synthetic_dataset.events.facets["device"].copy()
    devices[~seen] = 424242
    dataset = with_facet(synthetic_dataset, "device", devices)
    vocabulary = build_vocabularies(dataset).facets["device"]
    assert vocabulary.lookup(devices[~seen]).tolist() == [OUT_OF_VOCABULARY] * int((~seen).sum())
    assert (vocabulary.lookup(devices[seen]) >= FIRST_KNOWN).all()


def test_time_is_that_of_the_training_events(synthetic_dataset: Dataset) -> None:
    seen = training_mask(synthetic_dataset)
    training = synthetic_dataset.events.timestamp[seen]
    vocabularies = build_vocabularies(synthetic_dataset)
    assert vocabularies.first_timestamp == training.min()
    assert vocabularies.num_periods == (training.max() - training.min()) // (28 * 86_400) + 1


def test_a_limited_vocabulary_keeps_the_most_frequent_values(synthetic_dataset: Dataset) -> None:
    schema = synthetic_dataset.schema
    device = next(facet for facet in schema.facets if facet.name == "device")
    limited = tuple(
        replace(facet, vocabulary_size=2) if facet is device else facet for facet in schema.facets
    )
    counted = np.random.default_rng(0).choice(
        [10, 20, 30, 40], size=synthetic_dataset.num_events, p=[0.1, 0.3, 0.2, 0.4]
    )
    dataset = with_facet(
        replace(synthetic_dataset, schema=replace(schema, facets=limited)), "device", counted
    )
    vocabulary = build_vocabularies(dataset).facets["device"]
    assert vocabulary.lookup(np.array([10, 20, 30, 40])).tolist() == [0, 2, 0, 3]


def test_quantile_buckets_are_filled_about_equally(synthetic_dataset: Dataset) -> None:
    launched = build_vocabularies(synthetic_dataset).item_features["launched_at"]
    rows = launched.lookup(synthetic_dataset.catalogue.features["launched_at"])
    counts = np.bincount(rows)[FIRST_KNOWN:]
    assert len(counts) == 8
    assert counts.min() >= 0.5 * synthetic_dataset.num_items / 8


def test_json_keeps_every_lookup_and_the_hash_sees_a_change(synthetic_dataset: Dataset) -> None:
    built = build_vocabularies(synthetic_dataset)
    again = Vocabularies.from_json(built.to_json())
    assert again.to_json() == built.to_json()
    for name, raw in synthetic_dataset.events.facets.items():
        np.testing.assert_array_equal(again.facets[name].lookup(raw), built.facets[name].lookup(raw))
    assert replace(built, last_timestamp=built.last_timestamp + 1).hash() != built.hash() == again.hash()
