"""Dataset folders that differ in their schema alone: what a model is given of the same events."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from foundation.atomic import atomic_folder
from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.run_record import data_hash
from foundation.schema import Facet, Feature, Schema
from foundation.sources.folder import SOURCE_FILE, is_written

RATING = "rating"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        title: what the model is given, for people.
        change: from the whole schema to the row's.
    """

    title: str
    change: Callable[[Schema], Schema]


def without_time(schema: Schema) -> Schema:
    """The schema without hour, date and gap; the order of events stays."""
    return replace(schema, time_channels=())


def without_ratings(schema: Schema) -> Schema:
    """The schema without its facet `rating`.

    Raises:
        DataError: it has none.
    """
    kept = tuple(facet for facet in schema.facets if facet.name != RATING)
    if len(kept) == len(schema.facets):
        raise DataError(f"schema {schema.name!r} has no facet {RATING!r}; leave out the row no-ratings")
    return replace(schema, facets=kept)


def ids_and_order(schema: Schema) -> Schema:
    """The schema without anything but ids and order: no facet, feature, time, launch or content.

    Raises:
        DataError: adjacent events are merged, which tells how many each of them was.
    """
    if schema.merge_adjacent:
        raise DataError(
            f"schema {schema.name!r} merges events, which count their actions; leave out the row ids"
        )
    columns = replace(schema.columns, title=None, launched_at=None, content_embedding=None)
    return Schema(schema.name, columns, time_channels=())


ROWS = {
    "all": Row("all inputs", lambda schema: schema),
    "no-time": Row("without the request's time", without_time),
    "no-ratings": Row("without ratings", without_ratings),
    "ids": Row("ids and order only", ids_and_order),
}
"""By the name that the command line has for them."""


def schema_toml(schema: Schema) -> str:
    """The text of a `schema.toml` that `load_schema` reads as `schema`; without tasks."""
    lines = [f"name = {json.dumps(schema.name)}", "", "[columns]"]
    lines += [f"{key} = {json.dumps(name)}" for key, name in asdict(schema.columns).items() if name]
    lines += ["", "[time]", f"channels = {json.dumps(schema.time_channels)}"]
    lines += ["", "[merge]", f"adjacent = {json.dumps(schema.merge_adjacent)}"]
    tables = (
        ("facet", schema.declared_facets),
        ("item_feature", schema.item_features),
        ("profile_feature", schema.profile_features),
    )
    for kind, features in tables:
        for feature in features:
            lines += ["", f"[[{kind}]]", *_feature_lines(feature)]
    return "\n".join(lines) + "\n"


def _feature_lines(feature: Feature) -> Iterator[str]:
    for key in ("name", "kind", "column"):
        yield f"{key} = {json.dumps(getattr(feature, key))}"
    if isinstance(feature, Facet):
        yield f"role = {json.dumps(feature.role)}"
    if feature.vocabulary_size is not None:
        yield f"vocabulary_size = {feature.vocabulary_size}"
    if feature.boundaries:
        yield f"boundaries = {json.dumps(feature.boundaries)}"
    if feature.kind == "multi":
        yield f"max_values = {feature.max_values}"


def derive(whole: Dataset, name: str, out: Path) -> Path:
    """Writes the dataset folder of the row `name`, and returns it; one that is there already is reused.

    Parquet files are hard links where they can be; the split is the same.

    Args:
        whole: with all inputs.
        name: a key of `ROWS`.
        out: new, or of the same row of the same data.

    Raises:
        DataError: `out` holds something else, or the row needs what the schema lacks.
    """
    schema = ROWS[name].change(whole.schema)
    text = schema_toml(schema)
    source = {"source": "ablation", "row": name, "of": data_hash(whole), "schema": text}
    if is_written(out, source):
        return out
    if out.exists():
        out.rmdir()
    with atomic_folder(out) as partial:
        for file in sorted(whole.folder.glob("*.parquet")):
            _link(file, partial / file.name)
        shutil.copyfile(whole.folder / "split.json", partial / "split.json")
        (partial / "schema.toml").write_text(text, encoding="utf-8")
        (partial / SOURCE_FILE).write_text(json.dumps(source, indent=1, sort_keys=True), encoding="utf-8")
    return out


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, to)


def inputs_of(schema: Schema) -> dict[str, list[str]]:
    """What tokens and items are made of besides ids and order, for the report."""
    return {
        "time": list(schema.time_channels),
        "facets": [facet.name for facet in schema.facets],
        "item_features": [feature.name for feature in schema.item_features],
    }
