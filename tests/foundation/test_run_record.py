"""What a run's record knows of the data: anything that training reads changes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foundation.dataset import Dataset
from foundation.run_record import data_hash


@pytest.mark.parametrize("part", ["events", "catalogue", "profiles"])
def test_one_changed_value_changes_the_hash(synthetic_dataset: Dataset, part: str) -> None:
    owner = getattr(synthetic_dataset, part)
    field = "facets" if part == "events" else "features"
    for name, values in getattr(owner, field).items():
        changed = values.copy()
        changed.flat[-1] = 1 if changed.flat[-1] != 1 else 2
        others = getattr(owner, field) | {name: changed}
        changed_dataset = replace(synthetic_dataset, **{part: replace(owner, **{field: others})})
        assert data_hash(changed_dataset) != data_hash(synthetic_dataset), name


def test_equal_data_have_equal_hashes(synthetic_dataset: Dataset) -> None:
    events = synthetic_dataset.events
    copied = replace(synthetic_dataset, events=replace(events, item_id=np.array(events.item_id)))
    assert data_hash(copied) == data_hash(synthetic_dataset)


@pytest.mark.parametrize("column", ["launched_at", "content_embedding"])
def test_launches_and_content_embeddings_are_part_of_the_data(
    synthetic_dataset: Dataset, column: str
) -> None:
    catalogue = synthetic_dataset.catalogue
    values = np.zeros((len(catalogue.item_id), 2), dtype=np.float32 if column != "launched_at" else np.int64)
    datasets = [
        replace(synthetic_dataset, catalogue=replace(catalogue, **{column: values + shift}))
        for shift in (0, 1)
    ]
    assert data_hash(datasets[0]) != data_hash(datasets[1])
