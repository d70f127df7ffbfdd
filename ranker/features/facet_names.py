"""What people call the values of the facets that say where a request comes from: strings travel as their hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.raw_values import hash_strings

FILE = "facet_names.json"
FacetNames = Mapping[str, Mapping[int, str]]
"""By facet, then by raw value."""


def facet_names(dataset: Dataset) -> dict[str, dict[int, str]]:
    """Names of the categorical *where* facets whose column in events.parquet holds strings."""
    events = pl.scan_parquet(dataset.folder / "events.parquet")
    types = events.collect_schema()
    names = {}
    for facet in dataset.schema.facets_of("where"):
        if facet.kind == "categorical" and types[facet.column] in (pl.String, pl.Categorical, pl.Enum):
            values = events.select(pl.col(facet.column).cast(pl.String).drop_nulls().unique()).collect()
            known = sorted(values.to_series().to_list())
            names[facet.name] = dict(zip(hash_strings(known).tolist(), known, strict=True))
    return names


def save_facet_names(folder: Path, names: FacetNames) -> None:
    """Writes them into an existing folder."""
    (folder / FILE).write_text(json.dumps(names, ensure_ascii=False, indent=0), encoding="utf-8")


def load_facet_names(folder: Path) -> dict[str, dict[int, str]]:
    """Reads them.

    Raises:
        DataError: there are none, or they are something else; names the file.
    """
    path = folder / FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {
            facet: {int(value): str(name) for value, name in of_facet.items()}
            for facet, of_facet in plain.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: must hold the names of facets' values: {error}") from None
