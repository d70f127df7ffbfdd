"""What a release says about itself: `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundation.dataset import Dataset
from foundation.protocol import ProtocolName, check_protocol_name
from foundation.split import training_cut, training_mask

FORMAT = 2
"""Of the release folder; a reader refuses any other. 2 has the cut's protocol."""


@dataclass(frozen=True)
class TrainingCut:
    """What was kept from training, so that nobody tests, or trains on top, with labels the model saw.

    Attributes:
        protocol: what is held out, see `foundation.protocol`.
        training_share: of each training profile's events, from its first; the rest is the ranker's. 1 under
            another protocol than "profiles", where all but the held-out events train.
        split_hash: SHA-256 (hex) of split.json; empty under another protocol than "profiles", which alone reads it.
        held_out_hash: SHA-256 (hex) of the ascending raw ids of all held-out profiles (test and validation), or of
            profile, item and time of the held-out events.
        num_held_out: how many profiles, or events, they are.
    """

    protocol: ProtocolName
    training_share: float
    split_hash: str
    held_out_hash: str
    num_held_out: int


@dataclass(frozen=True)
class TrainingData:
    """The events a release was trained on.

    Attributes:
        name: of the dataset, from its schema.
        first_timestamp, last_timestamp: span of the training events, unix seconds.
        num_events: training events.
        cut: what was kept out.
    """

    name: str
    first_timestamp: int
    last_timestamp: int
    num_events: int
    cut: TrainingCut


@dataclass(frozen=True)
class Manifest:
    """What a release is, what it was made from, and what its files must be.

    Attributes:
        format: of the folder, see `FORMAT`.
        version: sorts by time of creation (UTC), and ends in the first letters of the embedding space's id.
        embedding_space_id: vectors of two releases may be compared only where it is equal.
        files: SHA-256 (hex) of every other file of the folder, by name.
        schema_hash: `Schema.hash()`.
        vocabulary_hash: `Vocabularies.hash()`.
        trained_on: data and cut.
        metrics: figures of the training run and of its validation profiles.
    """

    format: int
    version: str
    embedding_space_id: str
    files: dict[str, str]
    schema_hash: str
    vocabulary_hash: str
    trained_on: TrainingData
    metrics: dict[str, float]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or of another format.
            KeyError, TypeError: a field is missing or unknown.
        """
        plain: dict[str, Any] = json.loads(text)
        if plain["format"] != FORMAT:
            raise ValueError(f"format is {plain['format']!r}; this code reads {FORMAT}; pre-train again")
        data = plain.pop("trained_on")
        cut = TrainingCut(**data.pop("cut"))
        check_protocol_name(cut.protocol)
        return Manifest(**plain, trained_on=TrainingData(**data, cut=cut))


def training_cut_of(dataset: Dataset) -> TrainingCut:
    """The cut that training on `dataset` keeps to."""
    if dataset.protocol != "profiles":
        return _cut_of_events(dataset)
    held_out = np.union1d(dataset.split.test, dataset.split.validation).astype("<i8")
    return TrainingCut(
        protocol="profiles",
        training_share=float(training_cut(1_000)) / 1_000,
        split_hash=dataset.split.hash(),
        held_out_hash=hashlib.sha256(held_out.tobytes()).hexdigest(),
        num_held_out=len(held_out),
    )


def _cut_of_events(dataset: Dataset) -> TrainingCut:
    held_out = ~training_mask(dataset)
    profile_id = np.repeat(dataset.profile_ids, np.diff(dataset.offsets))
    digest = hashlib.sha256()
    for column in (profile_id, dataset.events.item_id, dataset.events.timestamp):
        digest.update(column[held_out].astype("<i8").tobytes())
    return TrainingCut(dataset.protocol, 1.0, "", digest.hexdigest(), int(held_out.sum()))


def training_data_of(dataset: Dataset) -> TrainingData:
    """Span, size and cut of the events of `dataset` that a foundation model is trained on (at least one)."""
    timestamps = dataset.events.timestamp[training_mask(dataset)]
    return TrainingData(
        name=dataset.schema.name,
        first_timestamp=int(timestamps.min()),
        last_timestamp=int(timestamps.max()),
        num_events=len(timestamps),
        cut=training_cut_of(dataset),
    )


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
