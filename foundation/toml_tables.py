"""Fields of TOML tables, checked one by one; each message names file, table, field and what would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from foundation.errors import DataError


def require(condition: bool, where: str, problem: str) -> None:
    """Raises a DataError that says where and what, unless the condition holds."""
    if not condition:
        raise DataError(f"{where}: {problem}")


def check_keys(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses a field that isn't known."""
    for key in table:
        require(key in known, where, f"unknown field {key!r}; the fields are {', '.join(known)}")


def named_tables(plain: dict[str, Any], key: str, where: str) -> list[tuple[dict[str, Any], str]]:
    """The `[[key]]` tables, each with how an error message calls it; their names must be given and differ."""
    tables = plain.get(key, [])
    require(isinstance(tables, list), where, f"{key} must be an array of tables: write [[{key}]]")
    labelled, names = [], set()
    for number, table in enumerate(tables, start=1):
        name = table.get("name") if isinstance(table, dict) else None
        require(
            isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None,
            where,
            f"[[{key}]] number {number}: name = {name!r}: must be a letter, then letters, digits or _",
        )
        require(name not in names, where, f"[[{key}]] {name!r}: declared twice")
        names.add(name)
        labelled.append((table, f"{where}: [[{key}]] {name!r}"))
    return labelled


def choice(table: dict[str, Any], key: str, choices: Sequence[str], where: str) -> Any:
    """The value of a field that must be one of the choices."""
    value = table.get(key)
    require(value in choices, where, f"{key} = {value!r}: must be one of {', '.join(choices)}")
    return value


def is_count(value: Any) -> bool:
    """Whether it is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def ascending_numbers(values: Any, where: str) -> tuple[float, ...]:
    """Boundaries of buckets, which must ascend as float32 too."""
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    require(
        numbers and all(low < high for low, high in pairwise(values)),
        where,
        f"boundaries = {values!r}: must be a list of ascending numbers",
    )
    # Raw numbers are float32, and so are the edges that they are compared with. TOML's whole numbers have no end.
    largest = float(np.finfo(np.float64).max)
    with np.errstate(over="ignore"):
        edges = np.array([np.inf if abs(value) > largest else value for value in values], dtype=np.float32)
    require(
        bool(np.isfinite(edges).all() and (np.diff(edges) > 0).all()),
        where,
        f"boundaries = {values!r}: are equal or infinite as float32 numbers; set them further apart",
    )
    return tuple(float(value) for value in values)
