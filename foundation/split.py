"""What is held out: `split.json`, written once with the data, and the cut within a profile's history."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from foundation.atomic import atomic_file
from foundation.errors import DataError
from foundation.protocol import ProtocolName, all_but_last

TRAIN, VALIDATION, TEST = 0, 1, 2
"""A profile's role: test and validation profiles are in neither pre-training nor co-training. Under protocols
that hold out events instead, every profile is TRAIN, and the names tell the held-out events apart."""

TEST_SHARE, VALIDATION_SHARE = 0.10, 0.05


@dataclass(frozen=True)
class Split:
    """The held-out profiles of a dataset.

    Attributes:
        seed: of the draw.
        test: int64, ascending raw profile ids.
        validation: int64, ascending raw profile ids.
    """

    seed: int
    test: np.ndarray
    validation: np.ndarray

    def roles(self, profile_id: np.ndarray) -> np.ndarray:
        """TRAIN, VALIDATION or TEST of each raw profile id `[P]`, int8 `[P]`; one not named is TRAIN."""
        roles = np.full(profile_id.shape, TRAIN, dtype=np.int8)
        roles[np.isin(profile_id, self.validation)] = VALIDATION
        roles[np.isin(profile_id, self.test)] = TEST
        return roles

    def to_json(self) -> str:
        """The text of `split.json`."""
        plain = {"seed": self.seed, "test": self.test.tolist(), "validation": self.validation.tolist()}
        return json.dumps(plain, sort_keys=True)

    def hash(self) -> str:
        """SHA-256 (hex) of `to_json`, which is that of the file when it was written here."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


def draw_split(profile_ids: np.ndarray, seed: int = 0) -> Split:
    """Draws 10 % of the profiles for test, 5 % for validation, at least one each; their order is irrelevant.

    Raises:
        DataError: fewer than three profiles.
    """
    ids = np.unique(profile_ids)
    if len(ids) < 3:
        raise DataError(
            f"events.parquet: holds {len(ids)} profiles; a split needs 3 at least (train, validation, test)"
        )
    shuffled = np.random.default_rng(seed).permutation(ids)
    num_test = max(1, round(TEST_SHARE * len(ids)))
    num_validation = max(1, round(VALIDATION_SHARE * len(ids)))
    held_out = shuffled[: num_test + num_validation]
    return Split(seed, test=np.sort(held_out[:num_test]), validation=np.sort(held_out[num_test:]))


def write_split(path: Path, split: Split) -> None:
    """Writes `split.json`; one that is there already is never replaced (FileExistsError)."""
    if path.exists():
        raise FileExistsError(f"{path}: a split is written once")
    with atomic_file(path) as partial:
        partial.write_text(split.to_json(), encoding="utf-8")


def read_split(path: Path) -> Split:
    """Reads `split.json`.

    Raises:
        DataError: not the JSON that `write_split` writes.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Split(int(plain["seed"]), *(_ids(plain[part]) for part in ("test", "validation")))
    except (ValueError, KeyError, TypeError, OverflowError):
        raise DataError(
            f"{path}: must hold seed, test and validation (lists of integer profile ids)"
        ) from None


def _ids(values: list[int]) -> np.ndarray:
    if not all(isinstance(value, int) for value in values):
        raise ValueError(values)
    return np.unique(np.asarray(values, dtype=np.int64))


class SplitProfiles(Protocol):
    """Anything that has profiles `[P]`, the offsets `[P+1]` of their events, a split and a protocol: a `Dataset`."""

    @property
    def profile_ids(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def split(self) -> Split: ...
    @property
    def protocol(self) -> ProtocolName: ...


def profile_roles(dataset: SplitProfiles) -> np.ndarray:
    """TRAIN, VALIDATION or TEST of each profile, int8 `[P]`, aligned with the dataset's events.

    All are TRAIN under a protocol that holds out no profiles.
    """
    if dataset.protocol != "profiles":
        return np.full(dataset.profile_ids.shape, TRAIN, dtype=np.int8)
    return dataset.split.roles(dataset.profile_ids)


def training_cut(num_events: np.ndarray | int) -> np.ndarray:
    """floor(0.8 n): of a training profile's n events the foundation has those before, the ranker the rest."""
    return np.asarray(num_events, dtype=np.int64) * 4 // 5


def training_lengths(dataset: SplitProfiles) -> np.ndarray:
    """How many of each profile's events, from its first, the foundation may be trained on; int64 `[P]`."""
    num_events = np.diff(dataset.offsets)
    if dataset.protocol != "profiles":
        return all_but_last(num_events, dataset.protocol)
    return np.where(profile_roles(dataset) == TRAIN, training_cut(num_events), 0)


def training_mask(dataset: SplitProfiles) -> np.ndarray:
    """The events that anything may be trained or counted on by the foundation, bool `[N]`.

    They are the first `training_lengths` of each profile.
    """
    num_events = np.diff(dataset.offsets)
    position = np.arange(dataset.offsets[-1]) - np.repeat(dataset.offsets[:-1], num_events)
    return position < np.repeat(training_lengths(dataset), num_events)
