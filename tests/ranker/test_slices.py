"""Slices hold the candidates that they say, by the raw data."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.dataset import Dataset
from foundation.detokenizer import Values
from foundation.joint_table import PADDING_ROW
from foundation.raw_values import NO_VALUE
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, build_vocabularies
from ranker.evaluation.slices import MAX_VALUES, _by_value, candidate_slices, fresh_candidates
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.source import build_requests
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks

DAY = 86_400


@pytest.fixture
def requests(synthetic_dataset: Dataset) -> Requests:
    tasks = load_tasks(synthetic_dataset.folder / "schema.toml")
    return build_requests(synthetic_dataset, tasks, "train", RequestConfig(per_profile=3))


@pytest.fixture
def rows(synthetic_dataset: Dataset, requests: Requests, make_assembly) -> Rows:
    return RowMaker(synthetic_dataset, make_assembly("decoder").features).rows(requests)


def test_canvas_and_history_length_are_those_of_the_request(
    synthetic_dataset: Dataset, requests: Requests, rows: Rows, make_assembly
) -> None:
    slices = candidate_slices(rows, make_assembly("decoder").features.tokenizer)
    assert set(slices) == {"title", "history_length", "canvas", "device"}
    sizes = np.diff(requests.candidate_offsets)
    canvas = requests.facets["canvas"]
    known = build_vocabularies(synthetic_dataset).facets["canvas"].lookup(canvas) > OUT_OF_VOCABULARY
    for value in np.unique(canvas[known]):
        assert np.array_equal(slices["canvas"][str(value)], np.repeat(canvas == value, sizes))
    num_events = requests.history_end - synthetic_dataset.offsets[requests.profile]
    short = np.repeat(num_events < 10, sizes)
    assert np.array_equal(slices["history_length"].get("0-9", np.zeros_like(short)), short)
    middle = np.repeat((num_events >= 10) & (num_events < 50), sizes)
    assert middle.any() and np.array_equal(slices["history_length"]["10-49"], middle)


def test_every_slicing_puts_a_candidate_into_one_slice(rows: Rows, make_assembly) -> None:
    for parts in candidate_slices(rows, make_assembly("decoder").features.tokenizer).values():
        assert (np.sum(list(parts.values()), axis=0) == 1).all()
        assert all(mask.any() for mask in parts.values())


@given(st.lists(st.tuples(st.sampled_from([NO_VALUE, 0, 27, 28, 200]), st.integers(0, 2)), min_size=1))
def test_a_title_is_fresh_for_four_weeks_or_until_it_is_seen(
    synthetic_dataset: Dataset, items: list[tuple[int, int]]
) -> None:
    ages, counts = np.array(items).T
    now = 1_000 * DAY
    vocabularies = dataclasses.replace(
        build_vocabularies(synthetic_dataset),
        launched_at=np.where(ages == NO_VALUE, NO_VALUE, now - ages * DAY),
        item_counts=counts,
    )
    rows = _one_request(np.arange(len(ages)), now)
    expected = [count == 0 or (age != NO_VALUE and age < 28) for age, count in items]
    assert fresh_candidates(rows, vocabularies).tolist() == expected
    unknown_launches = dataclasses.replace(vocabularies, launched_at=None)
    assert fresh_candidates(rows, unknown_launches).tolist() == [count == 0 for _, count in items]


def test_unknown_and_missing_values_have_slices_of_their_own(
    synthetic_dataset: Dataset, rows: Rows, make_assembly
) -> None:
    tokenizer: Tokenizer = make_assembly("decoder").features.tokenizer
    column = tokenizer.facet_columns[tokenizer.context_columns].index("canvas")
    assert tokenizer.vocabularies.facets["canvas"].num_rows <= MAX_VALUES
    request_side = rows.histories.request.request_side.copy()
    facets = {name: np.array([12345]) for name in ("canvas", "device", "holiday")}
    facets["home_row"] = np.array([1.0], dtype=np.float32)
    request_side[0, column] = tokenizer.request_ids(np.array([0]), facets).request_side[0, column]
    request_side[1, column] = PADDING_ROW
    request = rows.histories.request._replace(request_side=request_side)
    changed = dataclasses.replace(rows, histories=rows.histories._replace(request=request))
    slices = candidate_slices(changed, tokenizer)["canvas"]
    offsets = rows.candidate_offsets
    assert np.flatnonzero(slices["unknown"]).tolist() == list(range(offsets[0], offsets[1]))
    assert np.flatnonzero(slices["none"]).tolist() == list(range(offsets[1], offsets[2]))
    assert "other" not in slices


def test_rare_values_share_a_slice() -> None:
    rng = np.random.default_rng(0)
    value = rng.zipf(1.3, size=2_000)
    slices = _by_value(Values(np.full(len(value), FIRST_KNOWN), value), {1: "first"})
    counts = {name: int(mask.sum()) for name, mask in slices.items()}
    assert (slices["first"] == (value == 1)).all()
    named = [name for name in counts if name.isdigit()]
    assert len(named) == MAX_VALUES - 1 and "2" in named
    assert all(counts[name] == (value == int(name)).sum() for name in named)
    assert counts["other"] == len(value) - sum(counts[name] for name in [*named, "first"]) > 0


def _one_request(item_rows: np.ndarray, now: int) -> Rows:
    """Rows of which only items, offsets and the request's time are ever read."""
    request = SimpleNamespace(timestamp=np.array([now]))
    offsets = np.array([0, len(item_rows)])
    rows = SimpleNamespace(
        item_rows=item_rows, candidate_offsets=offsets, histories=SimpleNamespace(request=request)
    )
    return cast(Rows, rows)
