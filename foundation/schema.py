"""What a user's logs hold, as declared in `schema.toml`."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from foundation.errors import DataError

Kind = Literal["categorical", "numeric", "multi"]
Role = Literal["when", "where", "what"]


@dataclass(frozen=True)
class Feature:
    """One declared column of items or profiles.

    Attributes:
        name: what the model, the contract and the wire call it.
        kind: categorical (integers, strings, booleans), numeric (bucketed) or multi (lists of categories).
        column: its column in the Parquet file.
        vocabulary_size: at most so many known values (the most frequent ones), or for a numeric one without
            boundaries so many quantile buckets; None: every value, or 16 buckets.
        boundaries: ascending edges of a numeric one's buckets; an edge belongs to the bucket above it.
        max_values: how many values of a list are kept, from its front; 1 for the other kinds.
    """

    name: str
    kind: Kind
    column: str
    vocabulary_size: int | None = None
    boundaries: tuple[float, ...] = ()
    max_values: int = 1


@dataclass(frozen=True)
class Facet(Feature):
    """One declared column of events: *when* and *where* are known at request time, *what* only later."""

    role: Role = "what"


@dataclass(frozen=True)
class Columns:
    """The names that ids, time and title have in the user's Parquet files (the same name in every file)."""

    profile_id: str = "profile_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    title: str | None = None


@dataclass(frozen=True)
class Schema:
    """Every facet and feature of one dataset; time (hour of week, date, gap) is built in and not declared."""

    name: str
    columns: Columns
    facets: tuple[Facet, ...] = ()
    item_features: tuple[Feature, ...] = ()
    profile_features: tuple[Feature, ...] = ()

    def facets_of(self, *roles: Role) -> tuple[Facet, ...]:
        """The facets of the given roles, in declared order."""
        return tuple(facet for facet in self.facets if facet.role in roles)

    def to_json(self) -> str:
        """The schema as canonical JSON text: equal schemas give equal text."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @staticmethod
    def from_json(text: str) -> Schema:
        """The inverse of `to_json`."""
        plain = json.loads(text)
        return Schema(
            name=plain["name"],
            columns=Columns(**plain["columns"]),
            facets=tuple(Facet(**_tupled(facet)) for facet in plain["facets"]),
            item_features=tuple(Feature(**_tupled(feature)) for feature in plain["item_features"]),
            profile_features=tuple(Feature(**_tupled(feature)) for feature in plain["profile_features"]),
        )

    def hash(self) -> str:
        """SHA-256 (hex) of `to_json`."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


def _tupled(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "boundaries": tuple(plain["boundaries"])}


KINDS: tuple[Kind, ...] = get_args(Kind)
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_MAX_VALUES = 8
"""Values kept of a multi-valued column whose declaration doesn't say."""
BUILT_IN = ("hour_of_week", "date", "gap", "item", "item_id", "profile_id", "timestamp")
"""Names that facets and features can't have: the wire, the tokenizer and embedding tables use them already."""


def load_schema(path: Path) -> Schema:
    """Reads `schema.toml`; its `[[task]]` tables are left to the ranker.

    Raises:
        DataError: unreadable, or a field is missing, unknown or wrong; names it and what would be right.
    """
    try:
        with path.open("rb") as file:
            plain = tomllib.load(file)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; a dataset folder needs a schema.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid TOML: {error}") from None
    where = str(path)
    _check_keys(plain, ("name", "columns", "facet", "item_feature", "profile_feature", "task"), where)
    name = plain.get("name", path.absolute().parent.name)
    _require(isinstance(name, str), where, f"name = {name!r}: must be a string")
    return Schema(
        name=name,
        columns=_read_columns(plain.get("columns", {}), f"{where}: [columns]"),
        facets=tuple(_read_facet(table, label) for table, label in _tables(plain, "facet", where)),
        item_features=tuple(
            _read_feature(table, label) for table, label in _tables(plain, "item_feature", where)
        ),
        profile_features=tuple(
            _read_feature(table, label) for table, label in _tables(plain, "profile_feature", where)
        ),
    )


def _require(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise DataError(f"{where}: {problem}")


def _check_keys(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        _require(key in known, where, f"unknown field {key!r}; the fields are {', '.join(known)}")


def _tables(plain: dict[str, Any], key: str, where: str) -> list[tuple[dict[str, Any], str]]:
    """The `[[key]]` tables, each with how an error message calls it; their names must be given and differ."""
    tables = plain.get(key, [])
    _require(isinstance(tables, list), where, f"{key} must be an array of tables: write [[{key}]]")
    labelled, names = [], set()
    for number, table in enumerate(tables, start=1):
        name = table.get("name") if isinstance(table, dict) else None
        _require(
            isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None,
            where,
            f"[[{key}]] number {number}: name = {name!r}: must be a letter, then letters, digits or _",
        )
        _require(name not in names, where, f"[[{key}]] {name!r}: declared twice")
        names.add(name)
        labelled.append((table, f"{where}: [[{key}]] {name!r}"))
    return labelled


def _read_columns(table: Any, where: str) -> Columns:
    _require(isinstance(table, dict), where, "must be a table")
    _check_keys(table, [field.name for field in fields(Columns)], where)
    for key, value in table.items():
        _require(isinstance(value, str) and value != "", where, f"{key} = {value!r}: must be a column's name")
    return Columns(**table)


def _read_facet(table: dict[str, Any], where: str) -> Facet:
    role: Role = _choice(table, "role", ROLES, where)
    feature = _read_feature({key: value for key, value in table.items() if key != "role"}, where)
    return Facet(**vars(feature), role=role)


def _read_feature(table: dict[str, Any], where: str) -> Feature:
    _require(
        table["name"] not in BUILT_IN,
        where,
        f"this name is built in; none of {', '.join(BUILT_IN)} can be used",
    )
    _check_keys(table, [field.name for field in fields(Feature)], where)
    kind: Kind = _choice(table, "kind", KINDS, where)
    column = table.get("column", table["name"])
    _require(isinstance(column, str) and column != "", where, f"column = {column!r}: must be a column's name")
    size = table.get("vocabulary_size")
    _require(
        size is None or _is_count(size), where, f"vocabulary_size = {size!r}: must be a whole number above 0"
    )
    max_values = table.get("max_values", DEFAULT_MAX_VALUES if kind == "multi" else 1)
    _require(_is_count(max_values), where, f"max_values = {max_values!r}: must be a whole number above 0")
    _require(
        kind == "multi" or max_values == 1, where, f"max_values is for kind = 'multi', this one is {kind!r}"
    )
    boundaries = _read_boundaries(table.get("boundaries", []), where)
    _require(
        kind == "numeric" or not boundaries,
        where,
        f"boundaries are for kind = 'numeric', this one is {kind!r}",
    )
    _require(
        not (boundaries and size), where, "give boundaries or vocabulary_size (quantile buckets), not both"
    )
    return Feature(table["name"], kind, column, size, boundaries, max_values)


def _choice(table: dict[str, Any], key: str, choices: Sequence[str], where: str) -> Any:
    value = table.get(key)
    _require(value in choices, where, f"{key} = {value!r}: must be one of {', '.join(choices)}")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_boundaries(values: Any, where: str) -> tuple[float, ...]:
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    _require(
        numbers and all(low < high for low, high in pairwise(values)),
        where,
        f"boundaries = {values!r}: must be a list of ascending numbers",
    )
    # Raw numbers are float32, and so are the edges that they are compared with.
    with np.errstate(over="ignore"):
        edges = np.array(values, dtype=np.float64).astype(np.float32)
    _require(
        bool(np.isfinite(edges).all() and (np.diff(edges) > 0).all()),
        where,
        f"boundaries = {values!r}: are equal or infinite as float32 numbers; set them further apart",
    )
    return tuple(float(value) for value in values)
