"""Features that a candidate has in one request only: what the request says of it beside its item id.

Shapes: C candidates over the batch, W id columns, X dense columns.

A number is both bucketed (an id column) and standardised (a dense column). A feature that is for training only (the
position at which a candidate was shown) is never asked for in serving: there it has one fixed value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.raw_values import NO_NUMBER, NO_VALUE
from foundation.schema import Feature
from foundation.vocabulary import OUT_OF_VOCABULARY, Lookup, NumericBuckets, Vocabulary, build_lookup
from ranker.features.columns import SparseField
from ranker.features.item_features import mean_and_deviation, scale

CandidateKind = Literal["categorical", "numeric"]
KINDS: tuple[CandidateKind, ...] = get_args(CandidateKind)


@dataclass(frozen=True)
class CandidateFeature:
    """One declared list column of requests.parquet, a value for each candidate.

    Attributes:
        name: what the model, the contract and the wire call it.
        kind: categorical (integers, strings, booleans) or numeric.
        column: its column in requests.parquet.
        vocabulary_size: at most so many known values, or quantile buckets; None: every value, or 16 buckets.
        boundaries: ascending edges of a numeric one's buckets.
        training_only: whether serving fixes it at `at_serving` instead of asking for it.
        at_serving: that raw value (a string's hash); None is "no value".
    """

    name: str
    kind: CandidateKind
    column: str
    vocabulary_size: int | None = None
    boundaries: tuple[float, ...] = ()
    training_only: bool = False
    at_serving: int | float | None = None

    @property
    def is_number(self) -> bool:
        """Whether its raw values are float32, rather than int64."""
        return self.kind == "numeric"

    @property
    def missing(self) -> int | float:
        """What stands for "no value" among its raw values."""
        return float(NO_NUMBER) if self.is_number else int(NO_VALUE)

    @property
    def serving_value(self) -> int | float:
        """What it is fixed at in serving, as a raw value."""
        return self.missing if self.at_serving is None else self.at_serving

    def repeated(self, value: int | float, num_candidates: int) -> NDArray:
        """The same raw value for every candidate, `[C]`."""
        return np.full(num_candidates, value, dtype=np.float32 if self.is_number else np.int64)


class CandidateColumns(NamedTuple):
    """Candidate features after lookup."""

    sparse: NDArray[np.int64]
    """`[C, W]` ids, -1 where there is no value."""
    dense: NDArray[np.float32]
    """`[C, X]` standardised numbers, 0 where there is no value."""


class CandidateFields(NamedTuple):
    """What the columns hold."""

    sparse: tuple[SparseField, ...]
    num_dense: int


@dataclass(frozen=True)
class KnownFeature:
    """A declared feature with what training requests told of it: its values, and its scale if it is a number."""

    feature: CandidateFeature
    lookup: Lookup
    mean: float = 0.0
    deviation: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {"feature": asdict(self.feature), "lookup": self.lookup.to_plain()}
        return {**plain, "mean": self.mean, "deviation": self.deviation}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> KnownFeature:
        """The inverse of `to_json`."""
        declared = {**plain["feature"], "boundaries": tuple(plain["feature"]["boundaries"])}
        values = plain["lookup"]
        lookup: Lookup = (
            Vocabulary(np.asarray(values["keys"], dtype=np.int64))
            if "keys" in values
            else NumericBuckets(np.asarray(values["boundaries"], dtype=np.float32))
        )
        return cls(CandidateFeature(**declared), lookup, plain["mean"], plain["deviation"])


@dataclass(frozen=True)
class CandidateFeatures:
    """All candidate features of a ranker, in declared order; most rankers have none."""

    known: tuple[KnownFeature, ...] = ()

    @property
    def fields(self) -> CandidateFields:
        """Names and sizes of the columns that `look_up` gives."""
        sparse = (SparseField(each.feature.name, 1, each.lookup.num_rows) for each in self.known)
        return CandidateFields(tuple(sparse), sum(each.feature.is_number for each in self.known))

    @property
    def asked_for(self) -> tuple[KnownFeature, ...]:
        """Those that a request in serving brings along."""
        return tuple(each for each in self.known if not each.feature.training_only)

    def no_values(self, num_candidates: int) -> dict[str, NDArray]:
        """Raw values `[C]` of what is asked for, all missing: of a request that says nothing of its candidates."""
        asked_for = (each.feature for each in self.asked_for)
        return {feature.name: feature.repeated(feature.missing, num_candidates) for feature in asked_for}

    def look_up(self, raw: Mapping[str, NDArray], num_candidates: int) -> CandidateColumns:
        """Columns of raw values `[C]` by feature name; one that is for training only may be left out.

        Raises:
            ValueError: a feature is missing, or hasn't C values.
        """
        sparse = [np.empty((num_candidates, 0), dtype=np.int64)]
        dense = [np.empty((num_candidates, 0), dtype=np.float32)]
        for each in self.known:
            values = _values(each.feature, raw, num_candidates)
            sparse.append(each.lookup.lookup(values)[:, None])
            if each.feature.is_number:
                dense.append(scale(values, each.mean, each.deviation)[:, None])
        return CandidateColumns(np.concatenate(sparse, axis=1), np.concatenate(dense, axis=1))

    def as_served(self, columns: CandidateColumns) -> CandidateColumns:
        """The same columns, with what is for training only at its value in serving."""
        fixed = {
            each.feature.name: each.feature.repeated(
                each.feature.serving_value if each.feature.training_only else each.feature.missing,
                len(columns.sparse),
            )
            for each in self.known
        }
        served = self.look_up(fixed, len(columns.sparse))
        is_fixed = np.array([each.feature.training_only for each in self.known], dtype=bool)
        is_number = np.array([each.feature.is_number for each in self.known], dtype=bool)
        return CandidateColumns(
            np.where(is_fixed, served.sparse, columns.sparse),
            np.where(is_fixed[is_number], served.dense, columns.dense),
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, for `features.json`."""
        return [each.to_json() for each in self.known]

    @classmethod
    def from_json(cls, plain: list[dict[str, Any]]) -> CandidateFeatures:
        """The inverse of `to_json`."""
        return cls(tuple(KnownFeature.from_json(each) for each in plain))


def known_features(
    declared: Iterable[CandidateFeature], raw_values: Mapping[str, NDArray]
) -> CandidateFeatures:
    """Declared features with what the training requests tell of them: values, buckets, and the scale of numbers.

    Args:
        declared: from `ranker.schema.load_candidate_features`.
        raw_values: by feature name the raw values `[C]` of the candidates of training requests, and of no others
            (`ranker.requests.candidate_values`); a large sample of them will do.

    Raises:
        ValueError: values of a feature are missing.
        DataError: a feature is fixed in serving at a category that no training request has: its embedding would be one
            that training never touches.
    """
    known = []
    for feature in declared:
        if feature.name not in raw_values:
            raise ValueError(f"candidate feature {feature.name!r} is missing; given: {sorted(raw_values)}")
        raw = raw_values[feature.name]
        column = Feature(
            feature.name, feature.kind, feature.column, feature.vocabulary_size, feature.boundaries
        )
        lookup = build_lookup(column, raw)
        if len(raw) and feature.training_only:
            _check_served(feature, lookup)
        scaled = mean_and_deviation(raw) if feature.is_number else (0.0, 1.0)
        known.append(KnownFeature(feature, lookup, *scaled))
    return CandidateFeatures(tuple(known))


def _check_served(feature: CandidateFeature, lookup: Lookup) -> None:
    fixed = feature.repeated(feature.serving_value, 1)
    if lookup.lookup(fixed)[0] == OUT_OF_VOCABULARY:
        raise DataError(
            f"schema.toml: [[candidate_feature]] {feature.name!r}: at_serving = {feature.at_serving}: is not among the"
            f" values that training requests have in column {feature.column!r}; choose one of them, or leave it out"
        )


def _values(feature: CandidateFeature, raw: Mapping[str, NDArray], num_candidates: int) -> NDArray:
    if feature.name not in raw:
        if not feature.training_only:
            raise ValueError(f"candidate feature {feature.name!r} is missing; given: {sorted(raw)}")
        return feature.repeated(feature.serving_value, num_candidates)
    if len(raw[feature.name]) != num_candidates:
        raise ValueError(
            f"candidate feature {feature.name!r} has {len(raw[feature.name])} values; there are {num_candidates}"
            " candidates"
        )
    return raw[feature.name]
