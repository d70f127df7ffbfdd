"""What the ranker learns to predict of a candidate: the `[[task]]` tables of `schema.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from foundation.errors import DataError
from foundation.schema import Schema, load_schema

TaskKind = Literal["interaction", "threshold", "column"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

# The fields that a task of each kind has beside name and kind; each of them is required.
_FIELDS: dict[str, tuple[str, ...]] = {
    "interaction": (),
    "threshold": ("facet", "at_least"),
    "column": ("column",),
}


@dataclass(frozen=True)
class Task:
    """One binary label of a candidate.

    Attributes:
        name: what logits, metrics and the wire call it.
        kind: `interaction`: the profile went on to this item. `threshold`: it did, and a numeric *what* facet
            of that event reached a value; candidates it did not go on to carry no label. `column`: read from
            requests.parquet, where null is no label.
        facet: of a threshold.
        at_least: of a threshold: the smallest value that counts as positive.
        column: of requests.parquet, holding one label list per request.
    """

    name: str
    kind: TaskKind
    facet: str | None = None
    at_least: float | None = None
    column: str | None = None


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
    """Whether the labels of these tasks come from requests.parquet rather than from events."""
    return any(task.kind == "column" for task in tasks)


def _read_task(table: dict[str, Any], number: int, schema: Schema, path: Path) -> Task:
    name, kind = table.get("name"), table.get("kind")
    where = f"{path}: [[task]] number {number}"
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(f"{where}: name = {name!r}: must be letters, digits and underscores, a letter first")
    where = f"{path}: [[task]] {name!r}"
    if kind not in KINDS:
        raise DataError(f"{where}: kind = {kind!r}: must be one of {', '.join(KINDS)}")
    known = ("name", "kind", *_FIELDS[kind])
    for field in table:
        if field not in known:
            raise DataError(
                f"{where}: unknown field {field!r}; a task of kind {kind!r} has {', '.join(known)}"
            )
    for field in _FIELDS[kind]:
        if field not in table:
            raise DataError(f"{where}: has no {field!r}; a task of kind {kind!r} has {', '.join(known)}")
    if kind == "threshold":
        return _threshold(name, table, schema, where)
    if kind == "column":
        column = table["column"]
        if not isinstance(column, str) or not column:
            raise DataError(f"{where}: column = {column!r}: must be the name of a column of requests.parquet")
        return Task(name, "column", column=column)
    return Task(name, "interaction")


def _threshold(name: str, table: dict[str, Any], schema: Schema, where: str) -> Task:
    facet, at_least = table["facet"], table["at_least"]
    numeric = [each.name for each in schema.facets_of("what") if each.is_number]
    if facet not in numeric:
        raise DataError(
            f"{where}: facet = {facet!r}: must be a numeric 'what' facet, one of: {', '.join(numeric) or '(none)'}"
        )
    if not isinstance(at_least, int | float) or isinstance(at_least, bool):
        raise DataError(f"{where}: at_least = {at_least!r}: must be a number")
    return Task(name, "threshold", facet=facet, at_least=float(at_least))


def _check_together(tasks: tuple[Task, ...], path: Path) -> None:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: [[task]] {name!r}: declared twice")
    from_events = [task.name for task in tasks if task.kind != "column"]
    if are_logged(tasks) and from_events:
        raise DataError(
            f"{path}: [[task]] {from_events[0]!r}: its label comes from events and that of others from"
            " requests.parquet; give every task kind = 'column', or none"
        )
