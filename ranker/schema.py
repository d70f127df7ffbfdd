"""What the ranker alone reads of `schema.toml`: tasks, and features that a candidate has in one request only."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from foundation.errors import DataError
from foundation.raw_values import hash_string
from foundation.schema import Schema, load_schema, read_feature
from foundation.toml_tables import check_keys, is_count, named_tables, require
from ranker.features.candidate_features import KINDS as CANDIDATE_KINDS
from ranker.features.candidate_features import CandidateFeature

TaskKind = Literal["interaction", "threshold", "column", "window"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

_LARGEST_NUMBER = float(np.finfo(np.float32).max)

# The fields that a task of each kind must have beside name and kind, and those that it may have.
_FIELDS: dict[str, tuple[str, ...]] = {
    "interaction": (),
    "threshold": ("facet", "at_least"),
    "column": ("column",),
    "window": ("within_s",),
}
_OPTIONAL_FIELDS: dict[str, tuple[str, ...]] = {
    "interaction": (),
    "threshold": (),
    "column": ("at_least", "negatives_kept"),
    "window": ("facet", "at_least", "negatives_kept"),
}
LOGGED_KINDS: tuple[TaskKind, ...] = ("column", "window")
"""Of tasks whose candidates are those of requests.parquet."""
# The fields of a candidate feature, and those of one that serving doesn't ask for.
_CANDIDATE_FIELDS = ("name", "kind", "column", "vocabulary_size", "boundaries")
_FIXED_FIELDS = ("training_only", "at_serving")


@dataclass(frozen=True)
class Task:
    """One binary label of a candidate.

    Attributes:
        name: what logits, metrics and the wire call it.
        kind: `interaction`: the profile went on to this item. `threshold`: it did, and a numeric *what* facet
            of that event reached a value; candidates it did not go on to carry no label. `column`: read from
            requests.parquet, where null is no label. `window`: whether the profile has an event on this item from the
            logged request's second to `within_s` seconds later; one that the log ends before is no label.
        facet: of a threshold; of a window, whose events count only if this numeric *what* facet reaches `at_least`.
        at_least: the smallest value that counts as positive: of the facet, or of a column of numbers (without it,
            a column holds 0 and 1).
        column: of requests.parquet, holding one label list per request.
        within_s: of a window, in seconds.
        negatives_kept: share of the negatives that whoever wrote requests.parquet kept in it (1: all of them);
            probabilities are corrected for it. Of requests made of events the share is computed.
    """

    name: str
    kind: TaskKind
    facet: str | None = None
    at_least: float | None = None
    column: str | None = None
    within_s: int | None = None
    negatives_kept: float = 1.0


def load_tasks(path: Path) -> tuple[Task, ...]:
    """Reads the tasks of a `schema.toml`, in the order of the logits' columns.

    Raises:
        DataError: there is none, or a field is missing, unknown or of the wrong kind; names it and what would
        be right.
    """
    schema = load_schema(path)
    with path.open("rb") as file:
        tables = tomllib.load(file).get("task", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise DataError(f"{path}: task must be an array of tables: write [[task]]")
    if not tables:
        raise DataError(
            f'{path}: declares no [[task]]; give one, for example name = "watch", kind = "interaction"'
        )
    tasks = tuple(_read_task(table, number, schema, path) for number, table in enumerate(tables, start=1))
    _check_together(tasks, path)
    return tasks


def are_logged(tasks: tuple[Task, ...]) -> bool:
    """Whether the candidates of these tasks come from requests.parquet rather than from events."""
    return any(task.kind in LOGGED_KINDS for task in tasks)


def _read_task(table: dict[str, Any], number: int, schema: Schema, path: Path) -> Task:
    name, kind = table.get("name"), table.get("kind")
    where = f"{path}: [[task]] number {number}"
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(f"{where}: name = {name!r}: must be letters, digits and underscores, a letter first")
    where = f"{path}: [[task]] {name!r}"
    if kind not in KINDS:
        raise DataError(f"{where}: kind = {kind!r}: must be one of {', '.join(KINDS)}")
    known = ("name", "kind", *_FIELDS[kind], *_OPTIONAL_FIELDS[kind])
    for field in table:
        if field not in known:
            raise DataError(
                f"{where}: unknown field {field!r}; a task of kind {kind!r} has {', '.join(known)}"
            )
    for field in _FIELDS[kind]:
        if field not in table:
            raise DataError(f"{where}: has no {field!r}; a task of kind {kind!r} has {', '.join(known)}")
    return Task(
        name,
        kind,
        facet=_facet(table, schema, where),
        at_least=_at_least(table, where),
        column=_column(table, where),
        within_s=_within_s(table, where),
        negatives_kept=_negatives_kept(table, where),
    )


def _facet(table: dict[str, Any], schema: Schema, where: str) -> str | None:
    if table["kind"] == "window" and ("facet" in table) != ("at_least" in table):
        raise DataError(f"{where}: facet and at_least belong together; give both, or neither")
    if "facet" not in table:
        return None
    facet = table["facet"]
    numeric = [each.name for each in schema.facets_of("what") if each.is_number]
    if facet not in numeric:
        raise DataError(
            f"{where}: facet = {facet!r}: must be a numeric 'what' facet, one of: {', '.join(numeric) or '(none)'}"
        )
    return facet


def _at_least(table: dict[str, Any], where: str) -> float | None:
    at_least = table.get("at_least")
    if at_least is None:
        return None
    if not isinstance(at_least, int | float) or isinstance(at_least, bool):
        raise DataError(f"{where}: at_least = {at_least!r}: must be a number")
    return float(at_least)


def _column(table: dict[str, Any], where: str) -> str | None:
    column = table.get("column")
    if column is not None and (not isinstance(column, str) or not column):
        raise DataError(f"{where}: column = {column!r}: must be the name of a column of requests.parquet")
    return column


def _within_s(table: dict[str, Any], where: str) -> int | None:
    within_s = table.get("within_s")
    require(
        within_s is None or is_count(within_s),
        where,
        f"within_s = {within_s!r}: must be whole seconds above 0",
    )
    return within_s


def _negatives_kept(table: dict[str, Any], where: str) -> float:
    kept = table.get("negatives_kept", 1.0)
    fits = isinstance(kept, int | float) and not isinstance(kept, bool) and 0 < kept <= 1
    require(fits, where, f"negatives_kept = {kept!r}: must be a share above 0 and at most 1")
    return float(kept)


def _check_together(tasks: tuple[Task, ...], path: Path) -> None:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: [[task]] {name!r}: declared twice")
    from_events = [task.name for task in tasks if task.kind not in LOGGED_KINDS]
    if are_logged(tasks) and from_events:
        raise DataError(
            f"{path}: [[task]] {from_events[0]!r}: its label comes from events and that of others from"
            " requests.parquet; give every task kind = 'column' or 'window', or none"
        )


def load_candidate_features(path: Path) -> tuple[CandidateFeature, ...]:
    """Reads the `[[candidate_feature]]` tables of a `schema.toml`, in declared order; most schemas have none.

    Raises:
        DataError: a field is missing, unknown or wrong, a column is a task's label, or labels come from events,
            where there are no such columns; names it and what would be right.
    """
    load_schema(path)
    with path.open("rb") as file:
        plain = tomllib.load(file)
    tables = named_tables(plain, "candidate_feature", str(path))
    if not tables:
        return ()
    tasks = load_tasks(path)
    if not are_logged(tasks):
        raise DataError(
            f"{tables[0][1]}: is a column of requests.parquet, and the tasks' labels come from events; declare tasks"
            " whose labels are logged, or leave it out"
        )
    features = tuple(_candidate_feature(table, where) for table, where in tables)
    labels = {task.column: task.name for task in tasks}
    for feature, (_, where) in zip(features, tables, strict=True):
        require(
            feature.column not in labels,
            where,
            f"column = {feature.column!r}: holds the label of task {labels.get(feature.column)!r}",
        )
    return features


def _candidate_feature(table: dict[str, Any], where: str) -> CandidateFeature:
    check_keys(table, (*_CANDIDATE_FIELDS, *_FIXED_FIELDS), where)
    shared = {key: value for key, value in table.items() if key not in _FIXED_FIELDS}
    feature = read_feature(shared, where, CANDIDATE_KINDS)
    training_only = table.get("training_only", False)
    require(
        isinstance(training_only, bool), where, f"training_only = {training_only!r}: must be true or false"
    )
    at_serving = table.get("at_serving")
    require(
        at_serving is None or training_only,
        where,
        "at_serving is what a feature with training_only = true is fixed at; this one is sent with each request",
    )
    is_number = feature.kind == "numeric"
    return CandidateFeature(
        feature.name,
        "numeric" if is_number else "categorical",
        feature.column,
        feature.vocabulary_size,
        feature.boundaries,
        training_only,
        None if at_serving is None else _fixed_value(at_serving, is_number, where),
    )


def _fixed_value(given: Any, is_number: bool, where: str) -> int | float:
    """The raw value of `at_serving`."""
    if is_number:
        fits = isinstance(given, int | float) and not isinstance(given, bool) and abs(given) < _LARGEST_NUMBER
        require(fits, where, f"at_serving = {given!r}: must be a number, as kind = 'numeric' is")
        return float(given)
    if isinstance(given, str):
        return hash_string(given)
    fits = isinstance(given, int) and -(1 << 63) < given < 1 << 63
    require(fits, where, f"at_serving = {given!r}: must be an integer, a string or a boolean")
    return int(given)
