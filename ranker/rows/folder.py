"""A folder of request rows: all that co-training reads, and nothing else is needed of the data.

manifest.json                              RowsManifest
schema.json, vocab.json, features.json     the feature builder that made the rows
facet_names.json                           what values of facets are called, where they were strings
tasks.json                                 what the labels mean
items.safetensors                          features of every item row
train/draw-000/part-00000.parquet ..       training requests; a draw for each of some epochs
validation/part-00000.parquet ..           requests of held-out profiles
test/part-00000.parquet ..
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foundation.errors import DataError
from ranker.features.builder import FeatureBuilder
from ranker.features.facet_names import FacetNames, load_facet_names
from ranker.features.files import load_features, save_features
from ranker.features.item_features import ItemFeatures, item_fields
from ranker.rows.manifest import Part, RowsManifest, ShardRecord, read_rows_manifest
from ranker.rows.parquet import Widths, read_row_group
from ranker.rows.rows import Rows, join
from ranker.schema import Task

ITEMS, TASKS = "items.safetensors", "tasks.json"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of rows.

    Attributes:
        path: of the file.
        row_groups: requests of each of its row groups.
        sha256: of its bytes (hex), when it was written.
    """

    path: Path
    row_groups: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class RowFolder:
    """An open folder of rows.

    Attributes:
        path: of the folder.
        manifest: what it says about itself.
        features: the builder that made the rows, without bags of recent items.
        items: features of every item row.
        tasks: the N columns of the labels.
        facet_names: what values of facets are called, where they were strings.
    """

    path: Path
    manifest: RowsManifest
    features: FeatureBuilder
    items: ItemFeatures
    tasks: tuple[Task, ...]
    facet_names: FacetNames

    @classmethod
    def open(cls, path: Path) -> RowFolder:
        """Reads everything but the rows.

        Raises:
            DataError: a file is missing or damaged, or the vocabulary isn't the manifest's; one line naming it.
        """
        manifest = read_rows_manifest(path)
        features = load_features(path)
        vocabularies = features.tokenizer.vocabularies
        found, said = vocabularies.hash(), manifest.release.vocabulary_hash
        if found != said:
            raise DataError(
                f"{path / 'vocab.json'}: its hash is {found}, manifest.json says {said}; the file was changed"
            )
        fields = item_fields(features.tokenizer.schema, vocabularies)
        items = ItemFeatures(fields, *_load_items(path / ITEMS))
        tasks = _load_tasks(path / TASKS, manifest.tasks)
        return cls(path, manifest, features, items, tasks, load_facet_names(path))

    @property
    def widths(self) -> Widths:
        """Of the rows' lists."""
        return self.manifest.widths

    @property
    def num_draws(self) -> int:
        """Draws of the training requests; epoch e reads draw e % num_draws."""
        return len(self.manifest.draws)

    def shards(self, part: Part, draw: int = 0) -> list[Shard]:
        """The files of a part, in their order; training requests have several draws."""
        records = {
            "train": self.manifest.draws[draw],
            "validation": self.manifest.validation,
            "test": self.manifest.test,
        }[part]
        return [self._shard(record) for record in records]

    def num_rows(self, part: Part, draw: int = 0) -> int:
        """Requests of a part."""
        return sum(sum(shard.row_groups) for shard in self.shards(part, draw))

    def read_all(self, part: Part, draw: int = 0) -> Rows:
        """Every request of a part, in memory.

        Raises:
            DataError: a shard is missing or damaged; or the part holds no request.
        """
        shards = self.shards(part, draw)
        if not self.num_rows(part, draw):
            raise DataError(f"{self.path}: holds no {part} requests")
        parts = [
            read_row_group(shard.path, row_group, self.widths)
            for shard in shards
            for row_group in range(len(shard.row_groups))
        ]
        return join(parts)

    def _shard(self, record: ShardRecord) -> Shard:
        return Shard(self.path / record.file, record.row_groups, record.sha256)


def save_tables(path: Path, features: FeatureBuilder, items: ItemFeatures, tasks: tuple[Task, ...]) -> None:
    """Writes everything but manifest and rows into an existing folder."""
    save_features(path, features)
    save_file({"sparse": items.sparse.contiguous(), "dense": items.dense.contiguous()}, path / ITEMS)
    plain = [asdict(task) for task in tasks]
    (path / TASKS).write_text(json.dumps(plain, indent=1), encoding="utf-8")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: not found; a folder of rows has one") from None


def _load_tasks(path: Path, names: tuple[str, ...]) -> tuple[Task, ...]:
    try:
        tasks = tuple(Task(**each) for each in json.loads(_text(path)))
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{path}: not a list of tasks: {error}; make the rows anew") from None
    found = tuple(task.name for task in tasks)
    if found != names:
        raise DataError(f"{path}: has tasks {found}, manifest.json says {names}; the file was changed")
    return tasks


def _load_items(path: Path) -> tuple:
    try:
        tensors = load_file(path)
        return tensors["sparse"], tensors["dense"]
    except (FileNotFoundError, SafetensorError, KeyError):
        raise DataError(f"{path}: must be a safetensors file with sparse and dense") from None
