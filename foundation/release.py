"""Releases: what `foundation` writes and everything else loads.

    model.safetensors   weights and the catalogue's metadata rows
    config.json         FoundationConfig
    schema.json         facets and features
    vocab.json          vocabularies
    manifest.json       version, hash of every file, embedding space, training data and cut, metrics

No file is pickled. Loading checks every hash, the schema, the vocabulary and every tensor's shape.
"""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation.atomic import atomic_folder
from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.item_features import num_item_feature_rows
from foundation.item_tower import ItemFacts
from foundation.manifest import FORMAT, Manifest, TrainingData, file_hash, training_cut_of
from foundation.model import FoundationConfig, FoundationModel
from foundation.objectives.heads import Heads, build_heads
from foundation.schema import Schema
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import Vocabularies, build_vocabularies

MODEL, CONFIG, SCHEMA, VOCABULARY = "model.safetensors", "config.json", "schema.json", "vocab.json"
MANIFEST = "manifest.json"
_TOWER, _HEADS = "item_tower.", "heads."


class ReleaseError(DataError):
    """A release is damaged, or doesn't fit what it is used with; one line naming file or field."""


class Release(NamedTuple):
    """A loaded release; the model is in evaluation mode."""

    model: FoundationModel
    tokenizer: Tokenizer
    schema: Schema
    vocabularies: Vocabularies
    manifest: Manifest
    heads: Heads | None
    """Auxiliary heads that it was trained with, on the hidden states of `model`; None without any."""


def save_release(
    folder: Path,
    model: FoundationModel,
    tokenizer: Tokenizer,
    trained_on: TrainingData,
    metrics: dict[str, float],
    heads: Heads | None = None,
) -> Manifest:
    """Writes a release folder, all of it or nothing.

    Args:
        folder: new.
        model, tokenizer: what was trained, and what reads events for it.
        trained_on: data and cut.
        metrics: figures of the training run.
        heads: auxiliary heads trained with it.

    Raises:
        ReleaseError: `folder` is there already; a release is never replaced.
    """
    if folder.exists():
        raise ReleaseError(f"{folder}: is there already; a release is written once, choose another folder")
    schema, vocabularies = tokenizer.schema, tokenizer.vocabularies
    with atomic_folder(folder) as partial:
        config = {**model.config.to_json(), "heads": [] if heads is None else heads.names}
        save_file(_tensors(model, heads), partial / MODEL)
        (partial / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        (partial / SCHEMA).write_text(schema.to_json(), encoding="utf-8")
        (partial / VOCABULARY).write_text(vocabularies.to_json(), encoding="utf-8")
        hashes = {name: file_hash(partial / name) for name in (MODEL, CONFIG, SCHEMA, VOCABULARY)}
        space = hashes[MODEL][:16]
        manifest = Manifest(
            format=FORMAT,
            version=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{space[:8]}",
            embedding_space_id=space,
            files=hashes,
            schema_hash=schema.hash(),
            vocabulary_hash=vocabularies.hash(),
            trained_on=trained_on,
            metrics=metrics,
        )
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def load_release(folder: Path) -> Release:
    """Reads and checks a release.

    Raises:
        ReleaseError: a file is missing or changed, or files don't fit each other; one line that says which.
    """
    manifest = read_manifest(folder)
    for name in (MODEL, CONFIG, SCHEMA, VOCABULARY):
        _check_file(folder / name, manifest.files.get(name))
    schema = Schema.from_json((folder / SCHEMA).read_text(encoding="utf-8"))
    vocabularies = Vocabularies.from_json((folder / VOCABULARY).read_text(encoding="utf-8"))
    _check_hash(folder, "schema_hash", manifest.schema_hash, schema.hash())
    _check_hash(folder, "vocabulary_hash", manifest.vocabulary_hash, vocabularies.hash())
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tokenizer = Tokenizer(schema, vocabularies)
    model, heads = _load_model(folder / MODEL, config, tokenizer)
    return Release(model.eval(), tokenizer, schema, vocabularies, manifest, heads)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, its files not checked.

    Raises:
        ReleaseError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReleaseError(f"{path}: not found; a release folder has one") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{path}: not a release manifest: {error}") from None


def check_dataset(release: Release, dataset: Dataset) -> None:
    """Makes sure that `dataset` has the protocol, the schema and the vocabulary that `release` was trained with.

    Raises:
        ReleaseError: names the first part that differs.
    """
    check_readable(release, dataset)
    built = json.loads(build_vocabularies(dataset).to_json())
    trained = json.loads(release.vocabularies.to_json())
    # Items first: where they differ, so do their counts.
    for part in ("items", *trained):
        if built[part] != trained[part]:
            raise ReleaseError(
                f"{dataset.folder}: vocabulary of {part} differs from the release's {VOCABULARY}; "
                "use the data that the release was trained on, or pre-train anew"
            )


def check_readable(release: Release, dataset: Dataset) -> None:
    """Makes sure that `release` can read `dataset`: less than `check_dataset`, for data that went on since.

    The catalogue may have items that the release lacks: they are out of vocabulary. New events are fine, as long as
    none that the release was trained on is held out here.

    Raises:
        ReleaseError: protocol or schema differ, or an item of the release is not in the catalogue any more.
    """
    _check_protocol(release, dataset)
    for field in fields(Schema):
        trained_with, here = getattr(release.schema, field.name), getattr(dataset.schema, field.name)
        if trained_with != here:
            # A schema without a name has the folder's: who moved the data must be able to tell.
            values = f" (name = {here!r} here, {trained_with!r} there)" if field.name == "name" else ""
            raise ReleaseError(
                f"{dataset.folder / 'schema.toml'}: {field.name} differs from the release's {SCHEMA}{values}; "
                "use the data that the release was trained on, or pre-train anew"
            )
    _check_no_item_vanished(release, dataset)


def check_cut(release: Release, dataset: Dataset) -> None:
    """Makes sure that the release was trained without anything that `dataset` holds out.

    Co-training loads its data under the protocol "profiles", so it gets no release of another one past here.

    Raises:
        ReleaseError: names the field of the cut that differs.
    """
    _check_protocol(release, dataset)
    trained, here = release.manifest.trained_on.cut, training_cut_of(dataset)
    for field in fields(here):
        was, expected = getattr(trained, field.name), getattr(here, field.name)
        if was != expected:
            raise ReleaseError(
                f"{MANIFEST}: trained_on.cut.{field.name} is {was}, {dataset.folder} has {expected}: the "
                "release may have been trained on what is held out here; pre-train with this split"
            )


def _check_no_item_vanished(release: Release, dataset: Dataset) -> None:
    trained, here = release.vocabularies.items.keys, dataset.catalogue.item_id
    vanished = np.flatnonzero(~np.isin(trained, here))
    if len(vanished):
        raise ReleaseError(
            f"{dataset.folder / 'items.parquet'}: lacks {len(vanished)} of the {len(trained)} items that the release "
            f"was trained with, the first is its number {vanished[0]} (raw id {trained[vanished[0]]}); put them "
            "back, or pre-train anew"
        )


def _check_protocol(release: Release, dataset: Dataset) -> None:
    trained, here = release.manifest.trained_on.cut.protocol, dataset.protocol
    if trained == here:
        return
    field = f"{MANIFEST}: trained_on.cut.protocol is {trained!r}, {dataset.folder} is used with {here!r}"
    if here == "profiles":
        raise ReleaseError(
            f"{field}: this release was trained on events of every profile, also of those held out here, so "
            "nothing on top of it can be trained or tested on labels it hasn't seen; pre-train with --protocol "
            "profiles"
        )
    raise ReleaseError(f"{field}: evaluate it under its own protocol, or pre-train with --protocol {here}")


def _check_file(path: Path, expected: str | None) -> None:
    if expected is None:
        raise ReleaseError(f"{path.parent / MANIFEST}: files has no hash of {path.name}")
    if not path.is_file():
        raise ReleaseError(f"{path}: not found, though {MANIFEST} lists it")
    found = file_hash(path)
    if found != expected:
        raise ReleaseError(f"{path}: sha256 is {found}, {MANIFEST} says {expected}; the file was changed")


def _check_hash(folder: Path, field: str, said: str, found: str) -> None:
    if said != found:
        raise ReleaseError(f"{folder / MANIFEST}: {field} is {said}, the release's own files give {found}")


def _tensors(model: FoundationModel, heads: Heads | None) -> dict[str, Tensor]:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    of_heads = {} if heads is None else heads.state_dict()
    return tensors | {f"{_HEADS}{name}": tensor.contiguous() for name, tensor in of_heads.items()}


def _load_model(
    path: Path, config: dict[str, Any], tokenizer: Tokenizer
) -> tuple[FoundationModel, Heads | None]:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ReleaseError(f"{path}: not a safetensors file: {error}") from None
    num_feature_rows = num_item_feature_rows(tokenizer.schema, tokenizer.vocabularies)
    facts = _facts(path, tensors, tokenizer, num_feature_rows)
    shape = FoundationConfig.from_json(config)
    model = FoundationModel(shape, tokenizer.num_facet_rows, num_feature_rows, facts, tokenizer.age_column)
    heads = build_heads(config["heads"], tokenizer, shape.decoder.width)
    _check_tensors(path, tensors, _tensors(model, heads))
    model.load_state_dict({name: each for name, each in tensors.items() if not name.startswith(_HEADS)})
    if heads is not None:
        heads.load_state_dict({name: tensors[f"{_HEADS}{name}"] for name in heads.state_dict()})
    return model, heads


def _facts(path: Path, tensors: dict[str, Tensor], tokenizer: Tokenizer, num_feature_rows: int) -> ItemFacts:
    """The catalogue that a release carries, its metadata rows and ages inside their tables."""
    num_items = tokenizer.vocabularies.items.num_rows
    # One empty column where the schema declares no item feature (`catalogue_feature_rows`).
    num_columns = max(1, sum(feature.max_values for feature in tokenizer.schema.item_features))
    rows = {name: tensors.get(f"{_TOWER}{name}", torch.zeros(0)) for name in ItemFacts._fields}
    shapes = {"feature_rows": (num_items, num_columns), "counts": (num_items,), "age_rows": (num_items,)}
    shapes["content"] = (num_items, rows["content"].shape[-1])
    for name, shape in shapes.items():
        _check_shape(path, f"{_TOWER}{name}", tuple(rows[name].shape), shape)
    for name, num_rows in (("feature_rows", num_feature_rows), ("age_rows", tokenizer.num_facet_rows)):
        if not 0 <= int(rows[name].min()) <= int(rows[name].max()) < num_rows:
            raise ReleaseError(f"{path}: {_TOWER}{name} has rows outside 0 .. {num_rows - 1} ({VOCABULARY})")
    return ItemFacts(**rows)


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in sorted(found.keys() ^ expected.keys()):
        which = "is missing" if name in expected else "is unknown"
        raise ReleaseError(f"{path}: tensor {name} {which} for a model of {CONFIG}")
    for name, tensor in expected.items():
        _check_shape(path, name, tuple(found[name].shape), tuple(tensor.shape))


def _check_shape(path: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ReleaseError(
            f"{path}: tensor {name} has shape {list(found)}, {CONFIG} and {VOCABULARY} give {list(expected)}"
        )
