"""Writing a dataset folder whole: Parquet, schema, split, and a manifest that says what it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from foundation.atomic import atomic_folder
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError

SOURCE_FILE = "source.json"


def is_written(out: Path, source: Mapping[str, object]) -> bool:
    """Whether `out` already holds the dataset that `source` describes.

    Raises:
        DataError: it holds something else, which is not replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        held = json.loads((out / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = None
    if held != dict(source):
        raise DataError(f"--out {out}: holds other files already; give a folder that is new or empty")
    return True


def write_folder(
    out: Path, source: Mapping[str, object], schema_toml: str, tables: Mapping[str, pl.DataFrame]
) -> Dataset:
    """Writes a dataset folder, which appears whole or not at all, and loads it back.

    Args:
        out: the folder; must be new or empty.
        source: what the dataset was made from, JSON values; kept as `source.json`.
        schema_toml: the text of `schema.toml`.
        tables: by file name without `.parquet`.
    """
    if out.exists():
        out.rmdir()
    with atomic_folder(out) as partial:
        for name, table in tables.items():
            table.write_parquet(partial / f"{name}.parquet")
        (partial / "schema.toml").write_text(schema_toml, encoding="utf-8")
        (partial / SOURCE_FILE).write_text(
            json.dumps(dict(source), indent=1, sort_keys=True), encoding="utf-8"
        )
        # Loading draws and writes the split, and a dataset that wouldn't load never takes its place.
        load_dataset(partial)
    return load_dataset(out)


def summary(dataset: Dataset) -> dict[str, int]:
    """How many profiles, events and items of the catalogue a dataset holds."""
    return {"profiles": dataset.num_profiles, "events": dataset.num_events, "items": dataset.num_items}
