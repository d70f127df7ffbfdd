"""int8 exports: held to int8 by plain operators, their distance from float32 told, and what can't be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foundation.errors import DataError
from ranker.artifact import load_ranker
from serving import fuse as fusing
from serving.example_requests import example_request
from serving.model_folder import check_files
from serving.no_fused_form import NoFusedForm
from serving.parity import INT8_TOLERANCE, TOLERANCE, Parity, ParityError, difference, split_rank
from serving.probe import SERVED_TOLERANCE
from serving.quantise import quantise_halves
from serving.rank_request import wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.served_halves import Form, Precision, served_halves
from serving.served_ranker import ServedRanker
from serving.split import split

FORMS: list[tuple[Precision, Precision]] = [("int8", "float32"), ("float32", "int8"), ("int8", "int8")]
RankerFolder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("kind", "form"), [("decoder", FORMS[0]), ("crossing", FORMS[1]), ("crossing", FORMS[2])]
)
def test_an_int8_export_is_the_reference_and_says_so(
    ranker_folder: RankerFolder, tmp_path: Path, kind: str, form: tuple[Precision, Precision]
) -> None:
    rows, linears = form
    parity = export_repository(
        ExportConfig(ranker_folder(kind), tmp_path / "out", rows=rows, linears=linears)
    )
    folder = tmp_path / "out" / "marquee" / "1"
    manifest, answer = check_files(folder), json.loads((folder / "sample_answer.json").read_text())
    assert max(parity.split, parity.exported) <= Form(rows, linears).tolerance
    assert parity.from_float32 is not None
    assert 1e-4 < parity.from_float32 < 0.5, "int8 is near float32, and isn't float32"
    assert (manifest["rows"], manifest["linears"]) == form
    assert manifest["parity"]["from_float32"] == parity.from_float32
    assert manifest["kernels"]["not_fused"] == {}
    assert answer["tolerance"] == max(Form(rows, linears).tolerance, SERVED_TOLERANCE)
    assert torch.int8 in {tensor.dtype for tensor in load_file(folder / "candidate.safetensors").values()}
    of_requests = differences_from_reference(ranker_folder(kind), folder, form)
    # Of so few values hardly one lies between two whole numbers to the last bit.
    assert np.median(of_requests) <= TOLERANCE


def differences_from_reference(ranker: Path, folder: Path, form: tuple[str, str]) -> list[float]:
    """Of twenty requests, each in a call of its own."""
    loaded, served = load_ranker(ranker), ServedRanker(folder)
    rows, linears = (precision == "int8" for precision in form)
    halves = quantise_halves(split(loaded.model), rows=rows, linears=linears)
    reference, rng = split_rank(halves, loaded.features, served.contract), np.random.default_rng(1)
    requests = [example_request(loaded.features, events, 9, rng) for events in range(20)]
    calls = [wire_arrays(served.contract, [request]) for request in requests]
    return [difference(reference(call), served.rank(call)) for call in calls]


def test_float32_rows_have_the_limit_of_float32() -> None:
    assert Form().tolerance == Form(rows="int8").tolerance == TOLERANCE
    assert Form(linears="int8").tolerance == Form("int8", "int8").tolerance == INT8_TOLERANCE


def test_the_difference_from_float32_is_told_and_held_to_nothing() -> None:
    Parity(0.0, 0.0, from_float32=0.3).require()
    with pytest.raises(ParityError, match=r"exported logits differ from the reference.s int8 ones by 0\.1;"):
        Parity(0.0, 0.1, from_float32=0.3).require(INT8_TOLERANCE)


def test_int8_linears_run_in_fused_operators_alone(ranker_folder: RankerFolder, tmp_path: Path) -> None:
    config = ExportConfig(ranker_folder("decoder"), tmp_path / "out", fused=False, linears="int8")
    with pytest.raises(
        DataError, match=r"linears is int8, which fused operators alone .*profile: exported with"
    ):
        export_repository(config)
    assert list(tmp_path.iterdir()) == []


def test_int8_rows_need_no_fused_operator(ranker_folder: RankerFolder, tmp_path: Path) -> None:
    config = ExportConfig(ranker_folder("pooled"), tmp_path / "out", fused=False, rows="int8")
    parity = export_repository(config)
    assert max(parity.split, parity.exported) <= TOLERANCE
    assert check_files(tmp_path / "out" / "marquee" / "1")["kernels"]["fused"] == {}


def test_int8_linears_that_would_stay_unfused_are_refused(
    ranker_folder: RankerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_form(*_: object, **__: object) -> None:
        raise NoFusedForm("so it is")

    monkeypatch.setattr(fusing, "FusedDecoder", no_form)
    with pytest.raises(DataError, match=r"profile\.tower\.foundation\.decoder\.blocks\.0\..* so it is"):
        served_halves(split(load_ranker(ranker_folder("decoder")).model), Form(linears="int8"))


def test_int8_linears_must_be_somewhere(ranker_folder: RankerFolder) -> None:
    halves = split(load_ranker(ranker_folder("pooled")).model)
    halves.candidate.interaction.set_submodule("mlp", nn.Sequential())
    with pytest.raises(DataError, match="no linear layer that has an int8 form"):
        served_halves(halves, Form(linears="int8"))
