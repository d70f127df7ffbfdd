"""A trained ranker as a self-contained folder of safetensors and JSON: from co-training, for serving.

    model.safetensors   weights of both halves, and the catalogue's static features
    config.json         RankerConfig, for the decoder tower FoundationConfig, and the tasks' log rates
    tasks.json          the tasks, in the order of the logits' columns
    schema.json, vocab.json, features.json, recent_items.safetensors   see `ranker.features.files`
    manifest.json       version, hash of every file, the foundation release it grew from, its data, metrics

No file is pickled, and loading needs no process group.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation.atomic import atomic_folder
from foundation.errors import DataError
from foundation.item_features import num_item_feature_rows
from foundation.item_tower import ItemFacts
from foundation.manifest import Manifest, file_hash
from foundation.model import FoundationConfig, FoundationModel
from foundation.schema import Schema
from foundation.tokenizer import Tokenizer
from ranker.arches.profile_tower import DecoderTower
from ranker.features.builder import FeatureBuilder
from ranker.features.files import RECENT_ITEMS, feature_file_names, load_features, save_features
from ranker.features.item_features import ItemFeatures, item_fields
from ranker.manifest import FORMAT, FoundationOrigin, RankerManifest
from ranker.model import Ranker, RankerConfig
from ranker.schema import Task

MODEL, CONFIG, TASKS, MANIFEST = "model.safetensors", "config.json", "tasks.json", "manifest.json"
_ITEM_TOWER = "profile_tower.foundation.item_tower."
_ITEM_SPARSE, _ITEM_DENSE = "candidate_tower.item_sparse", "candidate_tower.item_dense"


class ArtifactError(DataError):
    """A ranker's folder is damaged or incomplete; one line naming the file."""


class TrainedRanker(NamedTuple):
    """What is worth keeping of a training run; the model is unsharded."""

    model: Ranker
    features: FeatureBuilder
    tasks: tuple[Task, ...]
    log_rates: tuple[float, ...] = ()
    """For each task log(w), w the share of its negatives that training saw: `probability = sigmoid(logit +
    log_rate)`. None given: all were seen, 0 each."""


class LoadedRanker(NamedTuple):
    """A loaded artifact; the model is unsharded and in evaluation mode."""

    model: Ranker
    tokenizer: Tokenizer
    schema: Schema
    tasks: tuple[Task, ...]
    features: FeatureBuilder
    manifest: RankerManifest
    log_rates: tuple[float, ...]
    """See `TrainedRanker`; one for each task."""


def save_ranker(
    folder: Path, trained: TrainedRanker, release: Manifest, metrics: dict[str, float]
) -> RankerManifest:
    """Write a ranker's folder, all of it or nothing.

    Args:
        folder: does not exist yet.
        trained: the model and what feeds it.
        release: manifest of the foundation release it grew from.
        metrics: figures of the run.

    Raises:
        ArtifactError: `folder` is there already (an artifact is never replaced), or `log_rates` don't fit the tasks.
    """
    if folder.exists():
        raise ArtifactError(f"{folder}: is there already; an artifact is written once, choose another folder")
    model = trained.model
    log_rates = _checked_log_rates(
        trained.log_rates or (0.0,) * len(trained.tasks), trained.tasks, "log_rates"
    )
    with atomic_folder(folder) as partial:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial / MODEL)
        _write_json(partial / CONFIG, {**_config_of(model), "log_rates": log_rates})
        _write_json(partial / TASKS, [asdict(task) for task in trained.tasks])
        names = (MODEL, CONFIG, TASKS, *feature_file_names(trained.features.recent is not None))
        save_features(partial, trained.features)
        hashes = {name: file_hash(partial / name) for name in names}
        manifest = RankerManifest(
            format=FORMAT,
            version=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{hashes[MODEL][:8]}",
            files=hashes,
            foundation=FoundationOrigin(
                release.version, release.embedding_space_id, release.schema_hash, release.vocabulary_hash
            ),
            trained_on=release.trained_on,
            metrics=metrics,
        )
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def load_ranker(folder: Path) -> LoadedRanker:
    """Read and check a ranker's folder.

    Raises:
        ArtifactError: a file is missing or changed, or files don't fit each other; one line that says which.
        DataError: the same, of the feature builder's files.
    """
    manifest = read_manifest(folder)
    for name in (MODEL, CONFIG, TASKS, *feature_file_names(RECENT_ITEMS in manifest.files)):
        _check_file(folder / name, manifest.files.get(name))
    features = load_features(folder)
    tasks = tuple(Task(**plain) for plain in json.loads((folder / TASKS).read_text(encoding="utf-8")))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    log_rates = _checked_log_rates(config["log_rates"], tasks, f"{folder / CONFIG}: log_rates")
    model = _load_model(folder, config, features, tasks)
    tokenizer = features.tokenizer
    return LoadedRanker(model.eval(), tokenizer, tokenizer.schema, tasks, features, manifest, log_rates)


def read_manifest(folder: Path) -> RankerManifest:
    """The manifest alone, its files not checked.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return RankerManifest.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; a ranker's folder has one") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a ranker's manifest: {error}") from None


def _config_of(model: Ranker) -> dict[str, object]:
    tower = model.profile_tower
    foundation = tower.foundation.config.to_json() if isinstance(tower, DecoderTower) else None
    return {"ranker": model.config.to_json(), "foundation": foundation}


def _checked_log_rates(values: Sequence[float], tasks: tuple[Task, ...], where: str) -> tuple[float, ...]:
    """One finite number <= 0 (the log of a share) for each task."""
    if len(values) != len(tasks) or not all(math.isfinite(value) and value <= 0 for value in values):
        names = [task.name for task in tasks]
        raise ArtifactError(f"{where} is {list(values)}; it must be a number <= 0 for each task of {names}")
    return tuple(float(value) for value in values)


def _load_model(
    folder: Path, config: dict[str, Any], features: FeatureBuilder, tasks: tuple[Task, ...]
) -> Ranker:
    tensors = _tensors(folder / MODEL)
    tokenizer = features.tokenizer
    items = ItemFeatures(
        item_fields(tokenizer.schema, tokenizer.vocabularies), tensors[_ITEM_SPARSE], tensors[_ITEM_DENSE]
    )
    foundation = None
    if config["foundation"] is not None:
        foundation = FoundationModel(
            FoundationConfig.from_json(config["foundation"]),
            tokenizer.num_facet_rows,
            num_item_feature_rows(tokenizer.schema, tokenizer.vocabularies),
            ItemFacts(**{name: tensors[f"{_ITEM_TOWER}{name}"] for name in ItemFacts._fields}),
            tokenizer.age_column,
        )
    names = [task.name for task in tasks]
    model = Ranker(RankerConfig.from_json(config["ranker"]), features.fields, items, names, foundation)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(f"{folder / MODEL}: does not fit {CONFIG}: {error}") from None
    return model


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a safetensors file: {error}") from None


def _check_file(path: Path, expected: str | None) -> None:
    if expected is None:
        raise ArtifactError(f"{path.parent / MANIFEST}: files has no hash of {path.name}")
    if not path.is_file():
        raise ArtifactError(f"{path}: not found, though {MANIFEST} lists it")
    found = file_hash(path)
    if found != expected:
        raise ArtifactError(f"{path}: sha256 is {found}, {MANIFEST} says {expected}; the file was changed")


def _write_json(path: Path, plain: object) -> None:
    path.write_text(json.dumps(plain, indent=1), encoding="utf-8")
