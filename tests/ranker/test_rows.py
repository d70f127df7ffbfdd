"""Request rows can be taken apart and put together."""

from __future__ import annotations

import dataclasses

import numpy as np

from foundation.dataset import Dataset
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.source import build_requests
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows, join
from ranker.schema import load_tasks


def _requests(dataset: Dataset) -> Requests:
    tasks = load_tasks(dataset.folder / "schema.toml")
    return build_requests(dataset, tasks, "train", RequestConfig(per_profile=2))


def _same(one: object, other: object) -> bool:
    if isinstance(one, Rows):
        return all(_same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, tuple):
        assert isinstance(other, tuple)
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    assert isinstance(one, np.ndarray)
    return np.array_equal(one, other)  # type: ignore[arg-type]


def test_taken_and_joined_rows_are_those_of_taken_requests(synthetic_dataset, make_assembly) -> None:
    maker = RowMaker(synthetic_dataset, make_assembly("decoder").features)
    requests = _requests(synthetic_dataset)
    rows, order = maker.rows(requests), np.random.default_rng(0).permutation(len(requests.profile))
    assert _same(rows.take(order), maker.rows(requests.take(order)))
    parts = np.array_split(order, 3)
    assert _same(join([rows.take(part) for part in parts]), rows.take(order))
