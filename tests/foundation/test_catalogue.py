"""Launches, content embeddings and durations: read as they are, and what is wrong is named."""

from __future__ import annotations

import logging
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.raw_values import NO_NUMBER, NO_VALUE
from foundation.split import training_mask
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, Vocabularies, build_vocabularies

DAY_S = 86_400
SCHEMA = """
[columns]
launched_at = "launch"
content_embedding = "embedding"
[[facet]]
name = "seconds"
role = "what"
kind = "duration"
[[facet]]
name = "device"
role = "where"
kind = "categorical"
"""
EVENTS = pl.DataFrame(
    {
        "profile_id": np.repeat(np.arange(10), 4),
        "item_id": [1, 2, 3, 4] * 10,
        "timestamp": (100 + np.arange(40)) * DAY_S,
        "seconds": [1.0, None, 0.0, 90.0] * 10,
        "device": ["tv", "phone"] * 20,
    }
)
ITEMS = pl.DataFrame(
    {
        "item_id": [4, 3, 2, 1],
        "launch": [10 * DAY_S, None, 20 * DAY_S, -30 * DAY_S],
        "embedding": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]],
    }
)


def load(folder: Path, events: pl.DataFrame = EVENTS, items: pl.DataFrame = ITEMS) -> Dataset:
    (folder / "schema.toml").write_text(SCHEMA)
    events.write_parquet(folder / "events.parquet")
    items.write_parquet(folder / "items.parquet")
    return load_dataset(folder)


def test_launches_and_embeddings_are_aligned_with_the_items(tmp_path: Path) -> None:
    catalogue = load(tmp_path).catalogue
    assert catalogue.launched_at is not None
    assert catalogue.content_embedding is not None
    assert catalogue.launched_at.tolist() == [10 * DAY_S, NO_VALUE, 20 * DAY_S, -30 * DAY_S]
    assert catalogue.content_embedding.tolist() == [[1, 2], [0, 0], [3, 4], [5, 6]]
    assert catalogue.content_embedding.dtype == np.float32


def test_vocabularies_hold_launches_and_training_counts(tmp_path: Path) -> None:
    dataset = load(tmp_path)
    built = build_vocabularies(dataset)
    seen = training_mask(dataset)
    counts = [(dataset.events.item_id[seen] == item).sum() for item in dataset.catalogue.item_id]
    for vocabularies in (built, Vocabularies.from_json(built.to_json())):
        assert vocabularies.launched_at is not None
        assert vocabularies.launched_at.tolist() == [
            NO_VALUE,
            NO_VALUE,
            10 * DAY_S,
            NO_VALUE,
            20 * DAY_S,
            -30 * DAY_S,
        ]
        assert vocabularies.item_counts.tolist() == [0, 0, *counts]
        assert vocabularies.last_timestamp == dataset.events.timestamp[seen].max()
        assert vocabularies.hash() == built.hash()


@pytest.mark.parametrize(
    "launch",
    [
        [datetime(1970, 1, 11), None, datetime(1970, 1, 21), datetime(1969, 12, 2)],
        [date(1970, 1, 11), None, date(1970, 1, 21), date(1969, 12, 2)],
    ],
)
def test_a_launch_may_be_a_date(tmp_path: Path, launch: list) -> None:
    items = ITEMS.with_columns(launch=pl.Series(launch))
    read = load(tmp_path, items=items).catalogue.launched_at
    assert read is not None
    assert read.tolist() == [10 * DAY_S, NO_VALUE, 20 * DAY_S, -30 * DAY_S]


def test_no_launch_is_known(tmp_path: Path) -> None:
    dataset = load(tmp_path, items=ITEMS.with_columns(launch=pl.Series([None] * 4)))
    assert dataset.catalogue.launched_at is not None
    assert dataset.catalogue.launched_at.tolist() == [NO_VALUE] * 4
    assert Tokenizer(dataset.schema, build_vocabularies(dataset)).facet_columns[-1] == "item_age"


def test_events_before_the_launch_are_counted_and_count_as_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = ITEMS.with_columns(launch=pl.Series([110 * DAY_S, None, 20 * DAY_S, 0]))
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path, items=items)
    # Item 4 is met on days 103, 107, 111, ..: two of them before day 110.
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/items.parquet: column 'launch': 2 events come before their item's launch, whose age counts "
        "as 0 then; the first is event 3, 7.0 days before the launch of '4'"
    ]
    tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
    events = dataset.events
    ids = tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
    facet_ids, item_ids = tokenizer.assemble(ids, np.array([4]), np.array([3]))
    assert tokenizer.detokenize(facet_ids, item_ids)["item_age"].row.tolist() == [FIRST_KNOWN]


def test_an_item_that_left_the_catalogue_has_no_age_and_is_out_of_vocabulary(tmp_path: Path) -> None:
    dataset = load(tmp_path, items=ITEMS[:3])
    vocabularies = build_vocabularies(dataset)
    assert vocabularies.item_counts.shape == (FIRST_KNOWN + 3,)
    assert vocabularies.item_counts[:FIRST_KNOWN].tolist() == [0, 0]
    tokenizer = Tokenizer(dataset.schema, vocabularies)
    events = dataset.events
    ids = tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
    facet_ids, item_ids = tokenizer.assemble(ids, np.array([1]), np.array([0]))
    decoded = tokenizer.detokenize(facet_ids, item_ids)
    assert decoded["item"].row.tolist() == [OUT_OF_VOCABULARY]
    assert decoded["item_age"].row.tolist() == [-1]


def test_durations_are_seconds_also_of_their_own_type(tmp_path: Path) -> None:
    expected = [1.0, float(NO_NUMBER), 0.0, 90.0]
    assert load(tmp_path).events.facets["seconds"][:4].tolist() == expected
    spans = [timedelta(seconds=1), None, timedelta(0), timedelta(seconds=90)] * 10
    typed = load(tmp_path, EVENTS.with_columns(seconds=pl.Series(spans)))
    assert typed.events.facets["seconds"][:4].tolist() == expected


@pytest.mark.parametrize(
    ("events", "items", "said"),
    [
        (
            EVENTS.with_columns(seconds=pl.Series([1.0, None, -2.5, -1] * 10)),
            ITEMS,
            "events.parquet: column 'seconds': has 20 negative durations, the first is -2.5 in row 2",
        ),
        (
            EVENTS,
            ITEMS.with_columns(pl.col("launch") + 10**12),
            "items.parquet: column 'launch': holds 1000001728000; timestamps are unix seconds, not finer units",
        ),
        (
            EVENTS,
            ITEMS.with_columns(pl.col("launch").cast(pl.Float64)),
            "items.parquet: column 'launch': is Float64; timestamps are whole unix seconds or datetimes",
        ),
        (EVENTS, ITEMS.drop("launch"), "items.parquet: no column 'launch', which schema.toml asks for"),
        (
            EVENTS,
            ITEMS.with_columns(embedding=pl.Series([[1.0], None, [2.0], [3.0, 4.0]])),
            "column 'embedding': row 3 holds 2 numbers and row 0 1; every row needs as many, or null",
        ),
        (
            EVENTS,
            ITEMS.with_columns(embedding=pl.Series([None, [1.0], [None], [3.0]], dtype=pl.List(pl.Float32))),
            "column 'embedding': row 2 holds a null or NaN",
        ),
        (
            EVENTS,
            ITEMS.with_columns(embedding=pl.Series([None] * 4, dtype=pl.List(pl.Float32))),
            "column 'embedding': holds no numbers",
        ),
        (EVENTS, ITEMS.with_columns(embedding=1.0), "column 'embedding': is Float64; it must hold a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, events: pl.DataFrame, items: pl.DataFrame, said: str) -> None:
    with pytest.raises(DataError) as raised:
        load(tmp_path, events, items)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_hash_sees_a_launch_and_a_count(tmp_path: Path) -> None:
    first = build_vocabularies(load(tmp_path))
    moved = build_vocabularies(load(tmp_path, items=ITEMS.with_columns(pl.col("launch") + 1)))
    assert first.hash() != moved.hash()
