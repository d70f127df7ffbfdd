"""Releases: exact round trip, and a loud no to anything changed or mismatched."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation import release as release_module
from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.manifest import file_hash, training_data_of
from foundation.model import FoundationConfig
from foundation.pretraining import build_model
from foundation.release import ReleaseError, check_cut, check_dataset, load_release, save_release
from foundation.split import Split
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies

FILES = ["config.json", "model.safetensors", "schema.json", "vocab.json"]


def _save(folder: Path, dataset: Dataset):
    torch.manual_seed(3)
    tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
    model = build_model(FoundationConfig(DecoderConfig(width=8, num_layers=1)), tokenizer, dataset)
    save_release(folder, model, tokenizer, training_data_of(dataset), {"loss": 1.5})
    return model, tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory, synthetic_dataset):
    folder = tmp_path_factory.mktemp("release") / "release"
    _save(folder, synthetic_dataset)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def _edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _rehash(folder: Path) -> None:
    _edit_manifest(folder, files={name: file_hash(folder / name) for name in FILES})


def test_round_trip_is_exact(tmp_path, synthetic_dataset):
    model, tokenizer = _save(tmp_path / "release", synthetic_dataset)
    loaded = load_release(tmp_path / "release")
    assert loaded.model.config == model.config
    assert not loaded.model.training
    expected = model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert loaded.schema == synthetic_dataset.schema
    assert loaded.vocabularies.hash() == tokenizer.vocabularies.hash()
    assert loaded.manifest.metrics == {"loss": 1.5}
    check_dataset(loaded, synthetic_dataset)
    check_cut(loaded, synthetic_dataset)


def test_a_world_without_item_features_round_trips(tmp_path, synthetic_dataset):
    schema = dataclasses.replace(synthetic_dataset.schema, item_features=())
    plain = dataclasses.replace(synthetic_dataset, schema=schema)
    model, _ = _save(tmp_path / "release", plain)
    loaded = load_release(tmp_path / "release")
    torch.testing.assert_close(
        tuple(loaded.model.item_vectors()), tuple(model.item_vectors()), rtol=0, atol=0
    )
    check_dataset(loaded, plain)


def test_the_manifest_says_what_was_trained_on_and_held_out(saved, synthetic_dataset):
    trained_on = load_release(saved).manifest.trained_on
    split = synthetic_dataset.split
    assert trained_on.cut.training_share == 0.8
    assert trained_on.cut.split_hash == split.hash()
    assert trained_on.cut.num_held_out == len(split.test) + len(split.validation)
    timestamps = synthetic_dataset.events.timestamp
    assert timestamps.min() <= trained_on.first_timestamp < trained_on.last_timestamp <= timestamps.max()
    assert 0 < trained_on.num_events < 0.8 * synthetic_dataset.num_events


def test_holds_no_pickle(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted([*FILES, "manifest.json"])
    assert not any(b"torch" in (saved / name).read_bytes()[:64] for name in FILES)


def test_equal_weights_share_an_embedding_space(tmp_path, saved, synthetic_dataset):
    _save(tmp_path / "again", synthetic_dataset)
    again, first = load_release(tmp_path / "again").manifest, load_release(saved).manifest
    assert again.embedding_space_id == first.embedding_space_id


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_named(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ReleaseError, match=rf"^[^\n]*{name}: sha256 is [^\n]*$"):
        load_release(copy)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ReleaseError, match=f"{name}: not found"):
        load_release(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_hash": "0" * 64}, "manifest.json: schema_hash is 000"),
        ({"vocabulary_hash": "0" * 64}, "manifest.json: vocabulary_hash is 000"),
        ({"files": {}}, "manifest.json: files has no hash of model.safetensors"),
        ({"format": 99}, "manifest.json: not a release manifest: format is 99"),
        ({"colour": "red"}, "manifest.json: not a release manifest: .*colour"),
        ({"trained_on": None}, "manifest.json: not a release manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(copy, changes, message):
    _edit_manifest(copy, **changes)
    with pytest.raises(ReleaseError, match=message):
        load_release(copy)


def test_a_torn_manifest_is_named(copy):
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ReleaseError, match=r"manifest.json: not a release manifest"):
        load_release(copy)


def test_a_shape_that_does_not_fit_is_named_with_both_shapes(copy):
    config = json.loads((copy / "config.json").read_text())
    config["decoder"]["width"] = 12
    (copy / "config.json").write_text(json.dumps(config))
    _rehash(copy)
    with pytest.raises(ReleaseError, match=r"model.safetensors: tensor \S+ has shape .*8.*give .*12"):
        load_release(copy)


@pytest.mark.parametrize(("change", "message"), [("add", "surplus is unknown"), ("drop", "is missing")])
def test_surplus_and_missing_tensors_are_named(copy, change, message):
    tensors = load_file(copy / "model.safetensors")
    if change == "add":
        tensors["surplus"] = torch.zeros(1)
    else:
        del tensors["decoder.final_norm.weight"]
    save_file(tensors, copy / "model.safetensors")
    _rehash(copy)
    with pytest.raises(ReleaseError, match=message):
        load_release(copy)


@pytest.mark.parametrize("name", ["feature_rows", "counts", "age_rows", "content"])
def test_a_catalogue_of_fewer_items_is_refused(copy, name):
    tensors = load_file(copy / "model.safetensors")
    tensors[f"item_tower.{name}"] = tensors[f"item_tower.{name}"][1:].clone()
    save_file(tensors, copy / "model.safetensors")
    _rehash(copy)
    with pytest.raises(ReleaseError, match=f"tensor item_tower.{name} has shape"):
        load_release(copy)


def test_a_catalogue_row_out_of_range_is_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["item_tower.feature_rows"][5, 0] = 1_000_000
    save_file(tensors, copy / "model.safetensors")
    _rehash(copy)
    with pytest.raises(ReleaseError, match=r"item_tower.feature_rows has rows outside"):
        load_release(copy)


def test_a_file_that_is_not_safetensors_is_refused(copy):
    (copy / "model.safetensors").write_bytes(b"not tensors")
    _rehash(copy)
    with pytest.raises(ReleaseError, match=r"model.safetensors: not a safetensors file"):
        load_release(copy)


def test_other_schema_and_other_vocabulary_are_named(saved, synthetic_dataset):
    loaded = load_release(saved)
    schema = dataclasses.replace(synthetic_dataset.schema, facets=synthetic_dataset.schema.facets[1:])
    with pytest.raises(ReleaseError, match=r"schema.toml: facets differs"):
        check_dataset(loaded, dataclasses.replace(synthetic_dataset, schema=schema))
    catalogue = dataclasses.replace(
        synthetic_dataset.catalogue, item_id=synthetic_dataset.catalogue.item_id[::-1].copy()
    )
    with pytest.raises(ReleaseError, match="vocabulary of items differs"):
        check_dataset(loaded, dataclasses.replace(synthetic_dataset, catalogue=catalogue))


def test_a_release_trained_on_profiles_held_out_here_is_refused(saved, synthetic_dataset):
    split = synthetic_dataset.split
    other = Split(split.seed, test=split.test[1:], validation=split.validation)
    with pytest.raises(ReleaseError, match=r"trained_on.cut.split_hash"):
        check_cut(load_release(saved), dataclasses.replace(synthetic_dataset, split=other))


def test_a_release_is_never_replaced(saved, synthetic_dataset):
    before = file_hash(saved / "model.safetensors")
    with pytest.raises(ReleaseError, match="is there already"):
        _save(saved, synthetic_dataset)
    assert file_hash(saved / "model.safetensors") == before


def test_a_failing_save_leaves_nothing(tmp_path, synthetic_dataset, monkeypatch):
    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(release_module, "file_hash", fail)
    with pytest.raises(OSError, match="disk full"):
        _save(tmp_path / "release", synthetic_dataset)
    assert list(tmp_path.iterdir()) == []
