"""Adjacent events on one item become one, and nothing is lost but what is said."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.dataset import Dataset, load_dataset
from foundation.merging import Way, merge_facets, merge_values, merged_offsets, run_starts
from foundation.raw_values import NO_NUMBER
from foundation.split import training_mask
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, Vocabularies, build_vocabularies

WAYS: dict[str, Way] = {
    "device": "first",
    "seconds": "sum",
    "action": "last",
    "tags": "last",
    "num_actions": "sum",
}
SCHEMA = """
[columns]
profile_id = "profile"
item_id = "item"
timestamp = "at"
[merge]
adjacent = true
[[facet]]
name = "device"
role = "where"
kind = "categorical"
[[facet]]
name = "seconds"
role = "what"
kind = "duration"
[[facet]]
name = "waited"
role = "when"
kind = "duration"
[[facet]]
name = "action"
role = "what"
kind = "categorical"
"""
# A profile: its actions, each an item, and seconds or None.
PROFILES = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 1000))), max_size=8), max_size=5
)


def _flat(profiles: list[list[tuple[int, int | None]]]) -> tuple[np.ndarray, np.ndarray, dict]:
    item_id = np.array([item for actions in profiles for item, _ in actions], dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum([len(actions) for actions in profiles]))).astype(np.int64)
    seconds = [NO_NUMBER if s is None else s for actions in profiles for _, s in actions]
    row = np.arange(len(item_id))
    return (
        item_id,
        offsets,
        {
            "device": row,
            "seconds": np.array(seconds, np.float32),
            "action": row,
            "tags": np.column_stack((row, -row)),
        },
    )


@given(PROFILES)
def test_merging_agrees_with_plain_python(profiles: list[list[tuple[int, int | None]]]) -> None:
    item_id, offsets, facets = _flat(profiles)
    starts = run_starts(item_id, offsets)
    merged = merge_facets(facets, WAYS, starts, len(item_id))
    expected, stops, row = [], [0], 0
    for actions in profiles:
        for item, run in groupby(actions, key=lambda action: action[0]):
            seconds = [s for _, s in run]
            known = [s for s in seconds if s is not None]
            row += len(seconds)
            total = float(sum(known)) if known else float(NO_NUMBER)
            expected.append((item, row - len(seconds), total, row - 1, len(seconds)))
        stops.append(len(expected))
    assert merged_offsets(starts, offsets).tolist() == stops
    found = zip(
        item_id[starts].tolist(),
        *(merged[name].tolist() for name in ("device", "seconds", "action", "num_actions")),
        strict=True,
    )
    assert list(found) == expected
    assert merged["tags"].tolist() == [[last, -last] for *_, last, _ in expected]


@given(PROFILES)
def test_nothing_is_lost_but_what_is_said(profiles: list[list[tuple[int, int | None]]]) -> None:
    item_id, offsets, facets = _flat(profiles)
    starts = run_starts(item_id, offsets)
    merged, stops = merge_facets(facets, WAYS, starts, len(item_id)), merged_offsets(starts, offsets)
    # Every action is counted, and every second.
    assert merged["num_actions"].sum() == len(item_id)
    assert merged["seconds"][merged["seconds"] != NO_NUMBER].sum() == sum(
        seconds or 0 for actions in profiles for _, seconds in actions
    )
    # Written out by their counts, merged events are the items in their order, profile by profile.
    counts = merged["num_actions"].astype(np.int64)
    assert np.repeat(item_id[starts], counts).tolist() == item_id.tolist()
    for profile in range(len(profiles)):
        own = slice(stops[profile], stops[profile + 1])
        assert counts[own].sum() == offsets[profile + 1] - offsets[profile]
        assert (np.diff(item_id[starts][own]) != 0).all()
    # Merged again, they stay as they are.
    again = merge_facets(merged, WAYS, run_starts(item_id[starts], stops), len(starts))
    assert all(np.array_equal(again[name], merged[name]) for name in WAYS)


def test_no_events_make_none() -> None:
    starts = run_starts(np.empty(0, np.int64), np.array([0, 0]))
    for way in ("first", "last", "sum"):
        assert len(merge_values(np.empty(0, np.float32), starts, way)) == 0


@pytest.fixture
def merged_dataset(tmp_path: Path) -> Dataset:
    """Ann pauses and resumes item 7 twice, Bob and Cid don't; Bob begins with the item that Ann ends with."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    rows = [
        ("ann", 7, 100, "tv", 60.0, 1.0, "play"),
        ("ann", 7, 200, "phone", None, 2.0, "pause"),
        ("ann", 7, 300, "tv", 30.5, 3.0, "finish"),
        ("ann", 9, 400, "tv", None, None, None),
        ("ann", 7, 500, "tv", 5.0, 0.0, "play"),
        ("bob", 7, 90, "web", 8.0, 0.0, "play"),
        ("bob", 9, 95, "web", 9.0, 0.0, None),
        ("cid", 8, 10, "tv", 1.0, 0.0, "play"),
    ]
    columns = ["profile", "item", "at", "device", "seconds", "waited", "action"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "events.parquet")
    return load_dataset(tmp_path)


def test_a_dataset_holds_merged_events(merged_dataset: Dataset) -> None:
    events, missing = merged_dataset.events, float(NO_NUMBER)
    assert merged_dataset.num_events == 6
    assert events.offsets.tolist() == [0, 3, 5, 6]
    assert events.item_id.tolist() == [7, 9, 7, 7, 9, 8]
    assert events.timestamp.tolist() == [100, 400, 500, 90, 95, 10]
    assert events.facets["seconds"].tolist() == [90.5, missing, 5, 8, 9, 1]
    # Known as the event begins, so a sum over what comes later has no place there.
    assert events.facets["waited"].tolist() == [1, missing, 0, 0, 0, 0]
    assert events.facets["num_actions"].tolist() == [3, 1, 1, 1, 1, 1]
    device, action = events.facets["device"], events.facets["action"]
    assert device[0] == device[1] == device[2]
    assert len(set(action.tolist()[:4])) == 3
    assert merged_dataset.catalogue.titles == ["7", "9", "8"]


def test_everything_that_counts_events_counts_merged_ones(merged_dataset: Dataset) -> None:
    assert len(training_mask(merged_dataset)) == 6
    vocabularies = build_vocabularies(merged_dataset)
    assert vocabularies.item_counts.sum() == training_mask(merged_dataset).sum()
    tokenizer = Tokenizer(merged_dataset.schema, Vocabularies.from_json(vocabularies.to_json()))
    assert tokenizer.facet_columns[tokenizer.outcome_columns] == ("seconds", "action", "num_actions")
    events = merged_dataset.events
    ids = tokenizer.event_ids(events.item_id, events.timestamp, events.facets)
    facet_ids, item_ids = tokenizer.assemble(ids, np.array([1]), np.array([0]))
    decoded = tokenizer.detokenize(facet_ids, item_ids)
    assert decoded["num_actions"].row.tolist() == [FIRST_KNOWN + 2]  # 3 or 4 actions
    assert decoded["seconds"].row.tolist() == [FIRST_KNOWN + 7]  # from 64 to 128 seconds
