"""One sentence per item, made of its title, texts and features: what a sentence encoder reads.

    TITLE. TEXT. FEATURE: VALUE, VALUE. FEATURE: VALUE.

Parts come in the order of the columns. The title and texts (string columns that schema.toml declares as nothing)
stand as they are; a feature stands behind its name, a list's values behind commas. Whole numbers have no decimals,
white space is one blank, and nulls, NaN and empty strings are left out, with the name before them where nothing is
left. An item of which nothing is left has the empty sentence.

    Toy Story (1995). genres: Animation, Children's, Comedy. year: 1995.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from foundation.errors import DataError
from foundation.schema import Schema


def sentence_columns(path: Path, present: Sequence[str], schema: Schema, chosen: Sequence[str]) -> list[str]:
    """The columns of items.parquet that a sentence is made of: those `chosen`, by default title and every feature.

    Args:
        path: of items.parquet, for messages.
        present: the columns it has.
        schema: what they are declared as.
        chosen: columns, or names of declared features; may be empty.

    Raises:
        DataError: schema.toml names no title and nothing is chosen; a column isn't there or is chosen twice.
    """
    column_of = {feature.name: feature.column for feature in schema.item_features}
    if chosen:
        columns = [name if name in present else column_of.get(name, name) for name in chosen]
    elif schema.columns.title is not None:
        columns = list(dict.fromkeys([schema.columns.title, *column_of.values()]))
    else:
        raise DataError(
            f'{path.with_name("schema.toml")}: [columns] has no title; add title = "COLUMN", or say with --columns '
            f"which of {', '.join(present)} to make sentences of"
        )
    for column in columns:
        if column not in present:
            raise DataError(f"{path}: no column {column!r}; it has {', '.join(present)}")
        if columns.count(column) > 1:
            raise DataError(f"--columns {' '.join(chosen)}: column {column!r} is named twice; name it once")
    return columns


def item_sentences(path: Path, items: pl.DataFrame, schema: Schema, columns: Sequence[str]) -> list[str]:
    """The sentence of every row of `items`; `path` is where they were read from.

    Raises:
        DataError: a column holds neither text, numbers, dates or booleans, nor lists of them.
    """
    name_of = {feature.column: feature.name for feature in schema.item_features}
    parts_of_columns = []
    for column in columns:
        values = items[column]
        inner = values.dtype.inner if isinstance(values.dtype, pl.List | pl.Array) else values.dtype
        is_text = inner in (pl.String, pl.Categorical, pl.Enum)
        if not (is_text or inner.is_numeric() or inner in (pl.Null, pl.Boolean, pl.Date, pl.Datetime)):
            raise DataError(
                f"{path}: column {column!r}: is {values.dtype}; sentences are made of strings, numbers, booleans, "
                "dates and lists of them; leave it out with --columns"
            )
        stands_alone = column == schema.columns.title or (is_text and column not in name_of)
        label = "" if stands_alone else f"{name_of.get(column, column)}: "
        parts_of_columns.append([_part(label, value) for value in values.to_list()])
    return [" ".join(part for part in parts if part) for parts in zip(*parts_of_columns, strict=True)]


def _part(label: str, value: object) -> str:
    """One column's part of a sentence, ended as one; empty where the value is."""
    texts = [_text(entry) for entry in (value if isinstance(value, list) else [value])]
    text = ", ".join(text for text in texts if text)
    if not text:
        return ""
    return f"{label}{text}" if text.endswith((".", "!", "?")) else f"{label}{text}."


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.6g}"
    return " ".join(str(value).split())
