"""What a user's logs hold, as declared in `schema.toml`."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from foundation.errors import DataError
from foundation.toml_tables import ascending_numbers, check_keys, choice, is_count, named_tables, require

Kind = Literal["categorical", "numeric", "multi", "duration"]
Role = Literal["when", "where", "what"]
Channel = Literal["hour_of_week", "date", "gap"]

TIME_CHANNELS: tuple[Channel, ...] = get_args(Channel)
NUM_ACTIONS = "num_actions"
"""The built-in *what* facet of merged events: how many actions each of them is."""


@dataclass(frozen=True)
class Feature:
    """One declared column of items or profiles.

    Attributes:
        name: what the model, the contract and the wire call it.
        kind: categorical (integers, strings, booleans), numeric (bucketed), multi (lists of categories) or, of
            facets only, duration (seconds, never negative, in buckets that double unless it has boundaries).
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

    @property
    def is_number(self) -> bool:
        """Whether its raw values are float32 with buckets (numeric, duration), rather than int64 with a vocabulary."""
        return self.kind in ("numeric", "duration")


@dataclass(frozen=True)
class Facet(Feature):
    """One declared column of events: *when* and *where* are known at request time, *what* only later."""

    role: Role = "what"


@dataclass(frozen=True)
class Columns:
    """The names that ids, time and title have in the user's Parquet files (the same name in every file).

    Of items.parquet alone, and None where it has no such column: `title`, `launched_at` (unix seconds, dates or
    datetimes; gives every token the age of its item) and `content_embedding` (lists of equally many numbers).
    """

    profile_id: str = "profile_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    title: str | None = None
    launched_at: str | None = None
    content_embedding: str | None = None


@dataclass(frozen=True)
class Schema:
    """Every facet and feature of one dataset.

    Attributes:
        name: of the dataset.
        columns: what ids, time and title are called.
        facets: as declared; where adjacent events are merged, `num_actions` comes last.
        item_features: as declared.
        profile_features: as declared.
        time_channels: the built-in facets of time that tokens have, in the order of `TIME_CHANNELS`.
        merge_adjacent: whether a profile's adjacent events on one item become one (`foundation/merging.py`).
    """

    name: str
    columns: Columns
    facets: tuple[Facet, ...] = ()
    item_features: tuple[Feature, ...] = ()
    profile_features: tuple[Feature, ...] = ()
    time_channels: tuple[Channel, ...] = TIME_CHANNELS
    merge_adjacent: bool = False

    @property
    def declared_facets(self) -> tuple[Facet, ...]:
        """The facets that are columns of events.parquet."""
        return tuple(facet for facet in self.facets if facet.name != NUM_ACTIONS)

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
            time_channels=tuple(plain["time_channels"]),
            merge_adjacent=plain["merge_adjacent"],
        )

    def hash(self) -> str:
        """SHA-256 (hex) of `to_json`."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()


def _tupled(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "boundaries": tuple(plain["boundaries"])}


KINDS: tuple[Kind, ...] = get_args(Kind)
FEATURE_KINDS: tuple[Kind, ...] = ("categorical", "numeric", "multi")
"""Kinds of item and profile features; facets have all of `KINDS`."""
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_MAX_VALUES = 8
"""Values kept of a multi-valued column whose declaration doesn't say."""
BUILT_IN = (
    *TIME_CHANNELS,
    "item",
    "item_age",
    "item_id",
    "no_context",
    NUM_ACTIONS,
    "profile_id",
    "timestamp",
)
"""Names that facets and features can't have: the wire, the tokenizer and embedding tables use them already."""
RANKER_TABLES = ("task", "candidate_feature")
"""Tables of `schema.toml` that only the ranker reads."""
_NUM_ACTIONS_FACET = Facet(
    NUM_ACTIONS, "numeric", NUM_ACTIONS, boundaries=(2.0, 3.0, 5.0, 9.0, 17.0, 33.0, 65.0), role="what"
)


def load_schema(path: Path) -> Schema:
    """Reads `schema.toml`; its `[[task]]` and `[[candidate_feature]]` tables are left to the ranker.

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
    ours = ("name", "columns", "time", "merge", "facet", "item_feature", "profile_feature")
    check_keys(plain, (*ours, *RANKER_TABLES), where)
    name = plain.get("name", path.absolute().parent.name)
    require(isinstance(name, str), where, f"name = {name!r}: must be a string")
    merge_adjacent = _read_merge(plain.get("merge", {}), f"{where}: [merge]")
    facets = [_read_facet(table, label) for table, label in named_tables(plain, "facet", where)]
    return Schema(
        name=name,
        columns=_read_columns(plain.get("columns", {}), f"{where}: [columns]"),
        facets=(*facets, _NUM_ACTIONS_FACET) if merge_adjacent else tuple(facets),
        item_features=tuple(
            read_feature(table, label) for table, label in named_tables(plain, "item_feature", where)
        ),
        profile_features=tuple(
            read_feature(table, label) for table, label in named_tables(plain, "profile_feature", where)
        ),
        time_channels=_read_channels(plain.get("time", {}), f"{where}: [time]"),
        merge_adjacent=merge_adjacent,
    )


def _read_columns(table: Any, where: str) -> Columns:
    require(isinstance(table, dict), where, "must be a table")
    check_keys(table, [field.name for field in fields(Columns)], where)
    for key, value in table.items():
        require(isinstance(value, str) and value != "", where, f"{key} = {value!r}: must be a column's name")
    return Columns(**table)


def _read_channels(table: Any, where: str) -> tuple[Channel, ...]:
    require(isinstance(table, dict), where, "must be a table")
    check_keys(table, ["channels"], where)
    chosen = table.get("channels", list(TIME_CHANNELS))
    require(
        isinstance(chosen, list) and all(channel in TIME_CHANNELS for channel in chosen),
        where,
        f"channels = {chosen!r}: must be a list of any of {', '.join(TIME_CHANNELS)}",
    )
    return tuple(channel for channel in TIME_CHANNELS if channel in chosen)


def _read_merge(table: Any, where: str) -> bool:
    require(isinstance(table, dict), where, "must be a table")
    check_keys(table, ["adjacent"], where)
    adjacent = table.get("adjacent", False)
    require(isinstance(adjacent, bool), where, f"adjacent = {adjacent!r}: must be true or false")
    return adjacent


def _read_facet(table: dict[str, Any], where: str) -> Facet:
    role: Role = choice(table, "role", ROLES, where)
    feature = read_feature({key: value for key, value in table.items() if key != "role"}, where, KINDS)
    return Facet(**vars(feature), role=role)


def read_feature(table: dict[str, Any], where: str, kinds: Sequence[Kind] = FEATURE_KINDS) -> Feature:
    """Reads the table of one feature whose name is known to be a word.

    Raises:
        DataError: a field is unknown or wrong; `where` says of which table.
    """
    require(
        table["name"] not in BUILT_IN,
        where,
        f"this name is built in; none of {', '.join(BUILT_IN)} can be used",
    )
    check_keys(table, [field.name for field in fields(Feature)], where)
    kind: Kind = choice(table, "kind", kinds, where)
    column = table.get("column", table["name"])
    require(isinstance(column, str) and column != "", where, f"column = {column!r}: must be a column's name")
    size = table.get("vocabulary_size")
    require(
        size is None or is_count(size), where, f"vocabulary_size = {size!r}: must be a whole number above 0"
    )
    max_values = table.get("max_values", DEFAULT_MAX_VALUES if kind == "multi" else 1)
    require(is_count(max_values), where, f"max_values = {max_values!r}: must be a whole number above 0")
    require(
        kind == "multi" or max_values == 1, where, f"max_values is for kind = 'multi', this one is {kind!r}"
    )
    boundaries = ascending_numbers(table.get("boundaries", []), where)
    require(
        kind in ("numeric", "duration") or not boundaries,
        where,
        f"boundaries are for kind = 'numeric' or 'duration', this one is {kind!r}",
    )
    require(
        kind != "duration" or size is None,
        where,
        "vocabulary_size is not for kind = 'duration'; give boundaries, or nothing for buckets that double",
    )
    require(
        not (boundaries and size), where, "give boundaries or vocabulary_size (quantile buckets), not both"
    )
    return Feature(table["name"], kind, column, size, boundaries, max_values)
