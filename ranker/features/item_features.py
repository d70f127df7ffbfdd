"""Static features of the catalogue's items, looked up inside the model so that requests carry ids only.

Shapes: I item rows (0 out of vocabulary, 1 start marker, then the catalogue), W id columns, X dense columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.dataset import Dataset
from foundation.schema import Feature, Schema
from foundation.split import training_mask
from foundation.vocabulary import FIRST_KNOWN, NO_NUMBER, OUT_OF_VOCABULARY, Vocabularies
from ranker.features.columns import SparseField

ITEM_ID = "item_id"
ID_COLUMN, POPULARITY_COLUMN = 0, 0
"""Of the id columns and of the dense ones."""
MOST_DEVIATIONS = 8.0
"""A number further from the mean counts as so far: a wild value from a client must not drown the rest."""


class ItemFeatures(NamedTuple):
    """The candidate side's tables. Rows 0 and 1 are neutral: no ids, and 0 in every dense column."""

    fields: tuple[SparseField, ...]
    """What the id columns hold, in their order; the first is the item's own id."""
    sparse: Tensor
    """`[I, W]` int64 ids, -1 where there is no value."""
    dense: Tensor
    """`[I, X]` float32, columns of mean 0 and variance 1 over the catalogue; 0 where there is no value."""


def build_item_features(dataset: Dataset, vocabularies: Vocabularies) -> ItemFeatures:
    """Id, declared features and log popularity of every item.

    A numeric feature is both bucketed (an id column) and standardised (a dense column). Popularity counts the
    events that the foundation model may train on, and no other: nothing of a held-out profile, and nothing
    behind a training profile's cut.

    Args:
        dataset: whose catalogue has every item of the vocabulary, and maybe more of them.
        vocabularies: of the release; their items are the rows.
    """
    catalogue, features = dataset.catalogue, dataset.schema.item_features
    place, num_items = _places(catalogue.item_id, vocabularies.items.keys), len(vocabularies.items.keys)
    sparse = [np.arange(FIRST_KNOWN, FIRST_KNOWN + num_items)[:, None]]
    dense = [standardised(np.log1p(training_counts(dataset, vocabularies)[FIRST_KNOWN:]))]
    for feature in features:
        raw = catalogue.features[feature.name][place]
        sparse.append(vocabularies.item_features[feature.name].lookup(raw).reshape(num_items, -1))
        if feature.kind == "numeric":
            dense.append(standardised(raw))
    special = ((FIRST_KNOWN, 0), (0, 0))
    columns = np.pad(np.concatenate(sparse, axis=1), special, constant_values=-1)
    # An unknown item has an id embedding to learn and no other feature.
    columns[OUT_OF_VOCABULARY, 0] = OUT_OF_VOCABULARY
    return ItemFeatures(
        item_fields(dataset.schema, vocabularies),
        torch.from_numpy(columns),
        torch.from_numpy(np.pad(np.stack(dense, axis=1), special)),
    )


def _places(item_id: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each key is in `item_id`, which holds all of them."""
    order = np.argsort(item_id, kind="stable")
    return order[np.searchsorted(item_id, keys, sorter=order)]


def item_fields(schema: Schema, vocabularies: Vocabularies) -> tuple[SparseField, ...]:
    """The id columns of the catalogue's features: the item's own id, then the declared features in order."""
    declared = (
        feature_field(feature, vocabularies.item_features[feature.name].num_rows)
        for feature in schema.item_features
    )
    return (SparseField(ITEM_ID, 1, vocabularies.items.num_rows, of_items=True), *declared)


def feature_field(feature: Feature, num_rows: int) -> SparseField:
    """The id columns of one declared feature."""
    return SparseField(feature.name, feature.max_values, num_rows)


def training_counts(dataset: Dataset, vocabularies: Vocabularies) -> NDArray[np.int64]:
    """Events of each item row `[I]` among those the foundation model may train on."""
    rows = vocabularies.items.lookup(dataset.events.item_id[training_mask(dataset)])
    return np.bincount(np.maximum(rows, OUT_OF_VOCABULARY), minlength=vocabularies.items.num_rows)


def standardised(raw: NDArray[np.floating]) -> NDArray[np.float32]:
    """`(raw - mean) / deviation` over the values that are there; 0 for the others (NaN, `NO_NUMBER`)."""
    return scale(raw, *mean_and_deviation(raw))


def mean_and_deviation(raw: NDArray[np.floating]) -> tuple[float, float]:
    """Of the values that are there; a constant, or no value at all, has deviation 1."""
    values = raw[is_number(raw)].astype(np.float64)
    if not len(values):
        return 0.0, 1.0
    deviation = float(values.std())
    return float(values.mean()), deviation if deviation > 0 else 1.0


def scale(raw: NDArray[np.floating], mean: float, deviation: float) -> NDArray[np.float32]:
    """`(raw - mean) / deviation` in float32, within `MOST_DEVIATIONS` of 0; 0 where there is no value."""
    values = np.where(is_number(raw), raw.astype(np.float64), mean)
    return np.clip((values - mean) / deviation, -MOST_DEVIATIONS, MOST_DEVIATIONS).astype(np.float32)


def is_number(raw: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where there is a value."""
    return ~(np.isnan(raw) | (raw == NO_NUMBER))
