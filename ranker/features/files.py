"""A feature builder as files, for the ranker's artifact and for a server's model folder.

schema.json                facets and features
vocab.json                 vocabularies
features.json              FeatureConfig, and how many recent items the pooled tower reads
recent_items.safetensors   features of every item, for the pooled tower only
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foundation.errors import DataError
from foundation.schema import Schema
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import Vocabularies
from ranker.features.builder import FeatureBuilder, FeatureConfig
from ranker.features.item_features import item_fields
from ranker.features.recent_items import RecentItems

SCHEMA, VOCABULARY, FEATURES = "schema.json", "vocab.json", "features.json"
RECENT_ITEMS = "recent_items.safetensors"
_ITEM_ROWS = "item_rows"


def feature_file_names(has_recent_items: bool) -> tuple[str, ...]:
    """The files of a feature builder with or without bags of recent items."""
    return (
        (SCHEMA, VOCABULARY, FEATURES, RECENT_ITEMS) if has_recent_items else (SCHEMA, VOCABULARY, FEATURES)
    )


def save_features(folder: Path, features: FeatureBuilder) -> None:
    """Write a feature builder into an existing folder, as `feature_file_names` says."""
    tokenizer, recent = features.tokenizer, features.recent
    plain = {"config": features.config.to_json(), "num_recent": recent.num_recent if recent else None}
    (folder / SCHEMA).write_text(tokenizer.schema.to_json(), encoding="utf-8")
    (folder / VOCABULARY).write_text(tokenizer.vocabularies.to_json(), encoding="utf-8")
    (folder / FEATURES).write_text(json.dumps(plain, indent=1), encoding="utf-8")
    if recent is not None:
        save_file({_ITEM_ROWS: torch.from_numpy(recent.item_rows)}, folder / RECENT_ITEMS)


def load_features(folder: Path) -> FeatureBuilder:
    """Read a feature builder; the files' hashes are checked by whoever wrote them down.

    Raises:
        DataError: a file is missing or is not what `save_features` writes; one line that names it.
    """
    schema = Schema.from_json(_text(folder / SCHEMA))
    vocabularies = Vocabularies.from_json(_text(folder / VOCABULARY))
    plain = json.loads(_text(folder / FEATURES))
    config, num_recent = FeatureConfig.from_json(plain["config"]), plain["num_recent"]
    recent = None
    if num_recent is not None:
        fields = item_fields(schema, vocabularies)
        rows = _item_rows(folder / RECENT_ITEMS)
        expected = (vocabularies.items.num_rows, sum(field.num_columns for field in fields))
        if rows.shape != expected:
            raise DataError(
                f"{folder / RECENT_ITEMS}: {_ITEM_ROWS} has shape {list(rows.shape)}, {SCHEMA} and"
                f" {VOCABULARY} give {list(expected)}"
            )
        recent = RecentItems(num_recent, fields, rows.numpy())
    return FeatureBuilder(config, Tokenizer(schema, vocabularies), recent)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: not found; a ranker's folder has one") from None


def _item_rows(path: Path) -> torch.Tensor:
    try:
        return load_file(path)[_ITEM_ROWS]
    except (FileNotFoundError, SafetensorError, KeyError):
        raise DataError(f"{path}: must be a safetensors file with {_ITEM_ROWS}") from None
