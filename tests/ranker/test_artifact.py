"""The ranker's artifact: everything comes back, and a changed file is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.manifest import file_hash
from ranker.arches.interaction import InteractionConfig
from ranker.arches.taps import ProfileConfig
from ranker.artifact import ArtifactError, TrainedRanker, load_ranker, save_ranker
from ranker.assembly import Assembly
from ranker.schema import load_tasks


@pytest.fixture
def save(synthetic_folder, release, tmp_path):
    """Saves an assembly; returns its folder."""

    def write(assembly: Assembly, log_rates: tuple[float, ...] = ()) -> Path:
        folder = tmp_path / "ranker"
        tasks = load_tasks(synthetic_folder / "schema.toml")
        save_ranker(folder, TrainedRanker(*assembly, tasks, log_rates), release.manifest, {"auc": 0.75})
        return folder

    return write


OPTIONS = {
    "interaction": InteractionConfig(3, 20, (24, 12), cross_layers=1, cross_width=4, head_widths=(8,)),
    "dense_widths": (6, 5),
    "profile": ProfileConfig((2, 1), mix_taps=True, tap_tokens="attention", tap_recent=4),
    "crossing_layers": 1,
}


@pytest.mark.parametrize(("tower", "options"), [("decoder", {}), ("pooled", {}), ("decoder", OPTIONS)])
def test_a_loaded_ranker_scores_as_the_saved_one(
    make_assembly, make_batch, save, release, tower, options
) -> None:
    assembly = make_assembly(tower, **options)
    folder = save(assembly)
    loaded = load_ranker(folder)
    expected = assembly.model(make_batch(assembly))
    assert torch.equal(loaded.model(make_batch(Assembly(loaded.model, loaded.features))), expected)
    assert not loaded.model.training
    assert loaded.model.config == assembly.model.config
    assert loaded.model.tasks == tuple(task.name for task in loaded.tasks) == ("watch", "like")
    assert loaded.schema == release.schema
    assert loaded.features.config.window == release.model.config.window
    assert loaded.manifest.metrics == {"auc": 0.75}
    assert loaded.manifest.foundation.version == release.manifest.version
    assert loaded.manifest.trained_on == release.manifest.trained_on
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("given", "kept"), [((), (0.0, 0.0)), ((-2.5, 0.0), (-2.5, 0.0))])
def test_log_rates_are_kept_for_each_task(make_assembly, save, given, kept) -> None:
    assert load_ranker(save(make_assembly("pooled"), given)).log_rates == kept


@pytest.mark.parametrize("wrong", [(-1.0,), (0.5, 0.0), (float("-inf"), 0.0), (float("nan"), 0.0)])
def test_log_rates_that_are_no_shares_of_the_tasks_are_refused(make_assembly, save, wrong) -> None:
    with pytest.raises(
        ArtifactError, match=r"log_rates is .* a number <= 0 for each task of \['watch', 'like'"
    ):
        save(make_assembly("pooled"), wrong)


def test_the_folder_holds_safetensors_and_json_only_with_a_hash_each(make_assembly, save) -> None:
    folder = save(make_assembly("pooled"))
    names = {path.name for path in folder.iterdir()}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}
    hashes = json.loads((folder / "manifest.json").read_text())["files"]
    assert hashes == {name: file_hash(folder / name) for name in names - {"manifest.json"}}


def test_an_artifact_is_never_replaced(make_assembly, save) -> None:
    assembly = make_assembly("pooled")
    save(assembly)
    with pytest.raises(ArtifactError, match="is there already"):
        save(assembly)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tasks.json", "vocab.json", "recent_items.safetensors"]
)
def test_a_changed_or_missing_file_is_named_in_one_line(make_assembly, save, name) -> None:
    folder = save(make_assembly("pooled"))
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: sha256 is .* the file was changed") as changed:
        load_ranker(folder)
    assert "\n" not in str(changed.value)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name}: not found"):
        load_ranker(folder)


def test_weights_of_another_model_are_refused_even_with_a_right_hash(make_assembly, save) -> None:
    folder = save(make_assembly("decoder"))
    tensors = load_file(folder / "model.safetensors")
    tensors["interaction.heads.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = file_hash(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"does not fit config.json: .*interaction.heads.bias") as refused:
        load_ranker(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not found"),
        ("{", "not a ranker's manifest"),
        ('{"format": 1}', "format is 1; this code reads 3; co-train again"),
    ],
)
def test_a_damaged_manifest_is_named(make_assembly, save, text, message) -> None:
    folder = save(make_assembly("pooled"))
    path = folder / "manifest.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=f"manifest.json: .*{message}"):
        load_ranker(folder)
