"""What export writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foundation.errors import DataError
from ranker.artifact import LoadedRanker
from serving import served_halves as exporting
from serving.contract import Contract
from serving.fuse import Kernels
from serving.model_folder import check_files
from serving.parity import Parity, ParityError, Rank, difference
from serving.rank_request import RankRequest, wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.served_ranker import ServedRanker
from serving.split import Halves


def test_the_manifest_tells_origin_parity_and_kernels(trained: LoadedRanker, model_folder: Path):
    manifest = check_files(model_folder)
    assert manifest["ranker"] == trained.manifest.version
    assert manifest["foundation"]["version"] == trained.manifest.foundation.version
    assert 0 <= manifest["parity"]["split"] <= 1e-5
    assert 0 <= manifest["parity"]["exported"] <= 1e-5
    assert manifest["kernels"] == {
        "fused": {
            "profile.tower.foundation.decoder": "marquee::decoder_step",
            "candidate.interaction": "marquee::score_candidates",
            "candidate.interaction.profile": "marquee::linear",
            "profile.tower.foundation.facet_embedding": "marquee::pool_bags",
            "profile.tower.sparse": "marquee::profile_vector",
        },
        "not_fused": {},
    }
    assert set(manifest["files"]) == {path.name for path in model_folder.iterdir()} - {"manifest.json"}


def test_no_file_is_pickled(repository: Path):
    suffixes = {path.suffix for path in repository.rglob("*") if path.is_file()}
    assert suffixes == {".pbtxt", ".json", ".safetensors", ".pt2", ".py"}, "and .pt2 see test_programs"


def test_the_sample_answer_is_that_of_the_unsplit_ranker(
    model_folder: Path, served_ranker: ServedRanker, unsplit: Rank
):
    request = RankRequest.from_json(json.loads((model_folder / "sample_request.json").read_text()))
    answer = json.loads((model_folder / "sample_answer.json").read_text())
    arrays = wire_arrays(served_ranker.contract, [request])
    expected = torch.tensor(answer["logits"])
    assert answer["tasks"] == list(served_ranker.contract.tasks)
    assert expected.abs().max() > 0.1
    assert difference(expected, unsplit(arrays)) <= 1e-6
    assert difference(expected, served_ranker.rank(arrays)) <= 1e-5


def test_the_contract_follows_from_schema_tasks_and_window(trained: LoadedRanker, model_folder: Path):
    contract = Contract.from_json((model_folder / "contract.json").read_text())
    assert [facet.name for facet in contract.facets] == [facet.name for facet in trained.schema.facets]
    assert {field.name: field.dtype for field in contract.context} == {
        "holiday": "INT64",
        "canvas": "INT64",
        "device": "INT64",
        "home_row": "FP32",
    }
    assert {field.name: field.max_values for field in contract.profile}["languages"] == 3
    assert (contract.limits.window, contract.limits.block, contract.limits.max_candidates) == (12, 4, 300)
    assert contract.tasks == tuple(task.name for task in trained.tasks)


def test_a_changed_file_is_named(model_folder: Path, tmp_path: Path):
    for path in model_folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    check_files(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"vocab\.json: sha256 is .* it was changed"):
        check_files(tmp_path)
    (tmp_path / "candidate.pt2").unlink()
    with pytest.raises(DataError, match=r"candidate\.pt2: not found"):
        check_files(tmp_path)


def test_a_repository_is_never_replaced(ranker_folder, tmp_path: Path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(DataError, match="is there already"):
        export_repository(ExportConfig(ranker_folder("decoder"), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("setting", "message"), [("max_candidates", "must be at least 1"), ("seed", "must be at least 0")]
)
def test_a_wrong_setting_is_named_before_anything_is_read(tmp_path: Path, setting: str, message: str):
    config = replace(ExportConfig(tmp_path / "no ranker", tmp_path / "out"), **{setting: -1})
    with pytest.raises(DataError, match=f"{setting} is -1; it {message}"):
        export_repository(config)


class _Slightly(nn.Module):
    """A layer that is off by a little."""

    def __init__(self, layer: nn.Module, error: float) -> None:
        super().__init__()
        self.layer, self.error = layer, error

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(*inputs) + self.error


def test_a_wrong_kernel_is_not_exported(ranker_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fuse_wrongly(halves: Halves) -> Kernels:
        halves.candidate.interaction = _Slightly(halves.candidate.interaction, error=1e-3)
        return Kernels()

    monkeypatch.setattr(exporting, "fuse", fuse_wrongly)
    with pytest.raises(
        ParityError, match=r"parity: split logits differ from unsplit ones by .*; the limit is 1e-05"
    ):
        export_repository(ExportConfig(ranker_folder("decoder"), tmp_path / "repository"))
    assert list(tmp_path.iterdir()) == [], "neither the repository nor a part of it is left"


@pytest.mark.parametrize(
    "worst", [{"split": 2e-5, "exported": 0.0}, {"split": 0.0, "exported": float("inf")}]
)
def test_the_gate_holds_for_both_forms(worst: dict[str, float]):
    Parity(1e-5, 1e-5).require()
    with pytest.raises(ParityError):
        Parity(**worst).require()


def test_differences_are_relative_to_large_logits_alone():
    one = torch.tensor([[0.5], [-0.1]])
    assert difference(one, one + 0.25) == pytest.approx(0.25)
    assert difference(one * 100, one * 100 + 0.25) == pytest.approx(0.25 / 50)
    assert difference(one, torch.full_like(one, np.nan)) == float("inf")
    assert difference(one, one[:1]) == float("inf")


def test_titles_are_written_on_demand(
    ranker_folder, synthetic_folder: Path, synthetic_dataset, tmp_path: Path
):
    export_repository(ExportConfig(ranker_folder("pooled"), tmp_path / "out", data=synthetic_folder))
    titles = json.loads((tmp_path / "out" / "titles.json").read_text())
    catalogue = synthetic_dataset.catalogue
    assert titles == {
        str(item): title for item, title in zip(catalogue.item_id, catalogue.titles, strict=True)
    }


def test_titles_of_other_data_are_refused_and_nothing_is_written(
    ranker_folder, synthetic_folder: Path, tmp_path: Path
):
    data = tmp_path / "data"
    shutil.copytree(synthetic_folder, data)
    schema = (data / "schema.toml").read_text().replace('name = "synthetic"', 'name = "another"', 1)
    (data / "schema.toml").write_text(schema)
    with pytest.raises(DataError, match=r"its schema \(another\) differs from the ranker's \(synthetic\)"):
        export_repository(ExportConfig(ranker_folder("pooled"), tmp_path / "out", data=data))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [1, 3])
def test_small_limits_can_be_exported(ranker_folder, tmp_path: Path, limit: int):
    export_repository(ExportConfig(ranker_folder("decoder"), tmp_path / "out", max_candidates=limit))
    contract = Contract.from_json((tmp_path / "out" / "marquee" / "1" / "contract.json").read_text())
    assert contract.limits.max_candidates == limit
