"""From raw values to embedding rows, and the vocabularies of a dataset.

Rows of every vocabulary: 0 out of vocabulary, 1 start marker, known values from 2. A lookup gives -1 for
"no value".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from foundation.dataset import Dataset
from foundation.raw_values import NO_NUMBER, NO_VALUE, hash_string, hash_strings
from foundation.schema import Feature
from foundation.split import TRAIN, profile_roles, training_mask

__all__ = [
    "DURATION_BOUNDARIES",
    "FIRST_KNOWN",
    "NO_NUMBER",
    "NO_VALUE",
    "OUT_OF_VOCABULARY",
    "PERIOD_S",
    "START",
    "Lookup",
    "NumericBuckets",
    "Vocabularies",
    "Vocabulary",
    "build_lookup",
    "build_vocabularies",
    "hash_string",
    "hash_strings",
]

OUT_OF_VOCABULARY, START, FIRST_KNOWN = 0, 1, 2
PERIOD_S = 28 * 24 * 3600
"""Length of a period of the coarse date, in seconds."""
DEFAULT_NUM_BUCKETS = 16
"""Quantile buckets of a numeric feature that declares neither boundaries nor a size."""
DURATION_BOUNDARIES = tuple(float(2**power) for power in range(21))
"""Seconds between the buckets of a duration that declares none: 1, 2, 4, .. 2^20 (12 days)."""


class Vocabulary:
    """Known int64 values, each with its row."""

    def __init__(self, keys: np.ndarray) -> None:
        """Takes the known values `[K]`, unique, in row order: `keys[i]` is row `i + FIRST_KNOWN`."""
        self.keys = np.ascontiguousarray(keys, dtype=np.int64)
        self._order = np.argsort(self.keys, kind="stable")
        self._sorted = self.keys[self._order]
        if (self._sorted[1:] == self._sorted[:-1]).any():
            raise ValueError("keys: a vocabulary's values must be unique")

    @property
    def num_rows(self) -> int:
        """Rows of an embedding table for it: known values and the two special rows."""
        return len(self.keys) + FIRST_KNOWN

    def lookup(self, raw: np.ndarray) -> np.ndarray:
        """Rows of raw values, int64 of any shape, in that shape: 0 where unknown, -1 for `NO_VALUE`."""
        raw = np.asarray(raw, dtype=np.int64)
        if not len(self.keys):
            return np.where(raw == NO_VALUE, -1, OUT_OF_VOCABULARY)
        place = np.minimum(np.searchsorted(self._sorted, raw), len(self.keys) - 1)
        rows = np.where(self._sorted[place] == raw, self._order[place] + FIRST_KNOWN, OUT_OF_VOCABULARY)
        return np.where(raw == NO_VALUE, -1, rows)

    def to_plain(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {"keys": self.keys.tolist()}


class NumericBuckets:
    """Buckets of a number: row `FIRST_KNOWN + i` holds `boundaries[i-1] <= x < boundaries[i]`."""

    def __init__(self, boundaries: np.ndarray) -> None:
        """Takes the ascending edges `[K]` between K + 1 buckets; compared in float32, as raw numbers are."""
        self.boundaries = np.asarray(boundaries, dtype=np.float32)
        if (np.diff(self.boundaries) <= 0).any():
            raise ValueError(f"boundaries = {self.boundaries.tolist()}: must ascend (in float32)")

    @property
    def num_rows(self) -> int:
        """Rows of an embedding table for it: buckets and the two special rows."""
        return len(self.boundaries) + 1 + FIRST_KNOWN

    def lookup(self, raw: np.ndarray) -> np.ndarray:
        """Rows of raw numbers, float of any shape to int64 of that shape: 0 for NaN, -1 for `NO_NUMBER`."""
        raw = np.asarray(raw, dtype=np.float32)
        rows = np.searchsorted(self.boundaries, raw, side="right") + FIRST_KNOWN
        rows = np.where(np.isnan(raw), OUT_OF_VOCABULARY, rows)
        return np.where(raw == NO_NUMBER, -1, rows).astype(np.int64)

    def to_plain(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        return {"boundaries": self.boundaries.tolist()}


Lookup = Vocabulary | NumericBuckets


@dataclass(frozen=True)
class Vocabularies:
    """Everything that turns raw values into rows.

    Attributes:
        items: the catalogue, in its order: row `i + FIRST_KNOWN` is item `i`.
        facets: by facet name, from training events only.
        item_features: by feature name, from the catalogue.
        profile_features: by feature name, from training profiles only.
        first_timestamp: of the first training event, unix seconds.
        last_timestamp: of the last training event, unix seconds.
        item_counts: training events of each item row, int64 `[I]`; 0 for the out-of-vocabulary and start rows.
        launched_at: unix seconds of each item row, int64 `[I]`, `NO_VALUE` where unknown; None where the schema
            names no such column.
    """

    items: Vocabulary
    facets: dict[str, Lookup]
    item_features: dict[str, Lookup]
    profile_features: dict[str, Lookup]
    first_timestamp: int
    last_timestamp: int
    item_counts: np.ndarray
    launched_at: np.ndarray | None = None

    @property
    def num_periods(self) -> int:
        """28-day periods between the first and the last training event, at least 1."""
        return (self.last_timestamp - self.first_timestamp) // PERIOD_S + 1

    def to_json(self) -> str:
        """The text of `vocab.json`."""
        groups = {
            name: {key: lookup.to_plain() for key, lookup in getattr(self, name).items()}
            for name in ("facets", "item_features", "profile_features")
        }
        rest = {
            "first_timestamp": self.first_timestamp,
            "last_timestamp": self.last_timestamp,
            "item_counts": self.item_counts.tolist(),
            "launched_at": None if self.launched_at is None else self.launched_at.tolist(),
        }
        return json.dumps({"items": self.items.to_plain(), **groups, **rest}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Vocabularies:
        """The inverse of `to_json`."""
        plain = json.loads(text)
        launched_at = plain["launched_at"]
        return Vocabularies(
            items=Vocabulary(np.asarray(plain["items"]["keys"], dtype=np.int64)),
            facets=_lookups(plain["facets"]),
            item_features=_lookups(plain["item_features"]),
            profile_features=_lookups(plain["profile_features"]),
            first_timestamp=plain["first_timestamp"],
            last_timestamp=plain["last_timestamp"],
            item_counts=np.asarray(plain["item_counts"], dtype=np.int64),
            launched_at=None if launched_at is None else np.asarray(launched_at, dtype=np.int64),
        )

    def hash(self) -> str:
        """SHA-256 (hex) of `to_json`."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


def _lookups(plain: dict[str, dict[str, Any]]) -> dict[str, Lookup]:
    return {
        name: Vocabulary(np.asarray(values["keys"], dtype=np.int64))
        if "keys" in values
        else NumericBuckets(np.asarray(values["boundaries"], dtype=np.float32))
        for name, values in plain.items()
    }


def build_vocabularies(dataset: Dataset) -> Vocabularies:
    """Vocabularies from the training events and profiles, those of items from the catalogue."""
    events, schema = dataset.events, dataset.schema
    seen = training_mask(dataset)
    training_profiles = profile_roles(dataset) == TRAIN
    timestamps = events.timestamp[seen]
    # Where every profile has one event, none is for training: time starts with the first of all.
    span = timestamps if len(timestamps) else events.timestamp[:1]
    items, launched_at = Vocabulary(dataset.catalogue.item_id), dataset.catalogue.launched_at
    item_counts = np.bincount(
        items.lookup(events.item_id[seen]).clip(OUT_OF_VOCABULARY), minlength=items.num_rows
    )
    item_counts[:FIRST_KNOWN] = 0
    unknown = np.full(FIRST_KNOWN, NO_VALUE, dtype=np.int64)
    return Vocabularies(
        items=items,
        facets={facet.name: build_lookup(facet, events.facets[facet.name][seen]) for facet in schema.facets},
        item_features={
            feature.name: build_lookup(feature, dataset.catalogue.features[feature.name])
            for feature in schema.item_features
        },
        profile_features={
            feature.name: build_lookup(feature, dataset.profiles.features[feature.name][training_profiles])
            for feature in schema.profile_features
        },
        first_timestamp=int(span.min()),
        last_timestamp=int(span.max()),
        item_counts=item_counts,
        launched_at=None if launched_at is None else np.concatenate((unknown, launched_at)),
    )


def build_lookup(feature: Feature, raw: np.ndarray) -> Lookup:
    """The vocabulary or the buckets of a declared facet or feature, from raw values that training may see."""
    if feature.kind == "duration":
        return NumericBuckets(np.asarray(feature.boundaries or DURATION_BOUNDARIES, dtype=np.float32))
    if feature.kind == "numeric":
        return NumericBuckets(np.asarray(feature.boundaries or _quantiles(feature, raw), dtype=np.float32))
    values, counts = np.unique(raw, return_counts=True)
    known = values != NO_VALUE
    values, counts = values[known], counts[known]
    if feature.vocabulary_size is not None and len(values) > feature.vocabulary_size:
        # The stable sort breaks ties by value, so that equal data give equal vocabularies.
        values = np.sort(values[np.argsort(-counts, kind="stable")[: feature.vocabulary_size]])
    return Vocabulary(values)


def _quantiles(feature: Feature, raw: np.ndarray) -> np.ndarray:
    """Edges of equally filled buckets; equal edges become one."""
    numbers = raw[raw != NO_NUMBER]
    if not len(numbers):
        return np.empty(0, dtype=np.float32)
    num_buckets = feature.vocabulary_size or DEFAULT_NUM_BUCKETS
    return np.unique(np.quantile(numbers, np.arange(1, num_buckets) / num_buckets).astype(np.float32))
