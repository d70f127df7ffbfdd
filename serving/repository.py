"""A trained ranker as a model repository for Triton Server.

repository/marquee/config.pbtxt    from the contract
repository/marquee/1/              see `serving.model_folder`
repository/titles.json             item id to title, if asked for; the server doesn't read it
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from foundation.atomic import atomic_folder
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.schema import Schema
from ranker.artifact import LoadedRanker, load_ranker
from ranker.features.files import save_features
from ranker.features.inputs import CandidateInputs, ProfileInputs
from ranker.state import Mode
from serving import model_folder
from serving.candidate_arguments import candidate_arguments
from serving.contract import Contract, Limits
from serving.example_requests import example_request, with_odd_candidates
from serving.model_config import config_pbtxt
from serving.parity import Arrays, Parity, Rank, measure, split_rank, unsplit_rank
from serving.probe import SERVED_TOLERANCE
from serving.programs import export_program, save_program, weights_of
from serving.rank_request import RankRequest, wire_arrays
from serving.served_halves import Form, Precision, served_halves
from serving.served_ranker import ServedRanker
from serving.split import Halves, candidate_shapes, profile_shapes, split
from serving.wire import contract_of, model_inputs

MODEL_SOURCE = Path(__file__).parent / "model_repository" / model_folder.MODEL_SOURCE
TITLES = "titles.json"
SAMPLE_EVENTS, SAMPLE_CANDIDATES = 8, 12


@dataclass(frozen=True)
class ExportConfig:
    """Cut a trained ranker in two, check parity, and write a model repository for Triton Server.

    Attributes:
        ranker: folder written by ranker.cotrain.
        out: model repository to write; must not exist yet.
        mode: vector (candidates meet the profile vector alone: the cheaper one) or crossing (they pass through the
            decoder's top layers too); None: crossing if the ranker was trained for it.
        max_candidates: most candidates of a request that the server will take.
        data: dataset folder whose titles are written to titles.json, for people.
        seed: of the requests that parity is measured on, and of the sample request.
        fused: run fused operators where there are any; the manifest says where and, for the rest, why not.
        rows: float32, or int8 for a quarter of the memory of the catalogue's rows on the candidate side.
        linears: float32, or int8 in the linear layers that fused operators compute.
    """

    ranker: Path
    out: Path
    max_candidates: int = Limits.max_candidates
    data: Path | None = None
    seed: int = 0
    mode: Mode | None = None
    fused: bool = True
    rows: Precision = "float32"
    linears: Precision = "float32"


def export_repository(config: ExportConfig) -> Parity:
    """Write the model repository, all of it or nothing.

    Raises:
        DataError: a setting is wrong, the ranker is damaged, or `out` is there already.
        ParityError: unsplit, split and exported logits differ by more than the gate allows.
    """
    _check_settings(config)
    loaded = load_ranker(config.ranker)
    try:
        mode = loaded.model.mode(config.mode)
    except ValueError as error:
        raise DataError(f"{config.ranker}: {error}") from None
    log_rates = {task.name: rate for task, rate in zip(loaded.tasks, loaded.log_rates, strict=True)}
    contract = contract_of(loaded.features, log_rates, config.max_candidates)
    form = Form(config.rows, config.linears, config.fused)
    halves, kernels, reference = served_halves(split(loaded.model, mode), form)
    unsplit = unsplit_rank(loaded.model, loaded.features, contract, mode)
    expected = unsplit if reference is None else split_rank(reference, loaded.features, contract)
    with atomic_folder(config.out) as repository:
        folder = repository / contract.model / model_folder.VERSION
        folder.mkdir(parents=True)
        (folder.parent / "config.pbtxt").write_text(config_pbtxt(contract), encoding="utf-8")
        (folder / model_folder.CONTRACT).write_text(contract.to_json(), encoding="utf-8")
        save_features(folder, loaded.features)
        rng = np.random.default_rng(config.seed)
        calls = _example_calls(loaded, contract, rng)
        _write_programs(folder, halves, *model_inputs(contract, loaded.features, calls[0]))
        in_modules, exported = split_rank(halves, loaded.features, contract), ServedRanker(folder).rank
        parity = measure(calls, unsplit, in_modules, exported, None if reference is None else expected)
        parity.require(form.tolerance)
        num_candidates = min(SAMPLE_CANDIDATES, config.max_candidates)
        sample = example_request(loaded.features, SAMPLE_EVENTS, num_candidates, rng)
        _write_sample(folder, sample, contract, expected, max(form.tolerance, SERVED_TOLERANCE))
        shutil.copyfile(MODEL_SOURCE, folder / model_folder.MODEL_SOURCE)
        if config.data is not None:
            _write_titles(repository / TITLES, load_dataset(config.data), loaded.schema)
        model_folder.write_manifest(
            folder, {"mode": mode, **_details(loaded, parity), **asdict(form), "kernels": asdict(kernels)}
        )
    return parity


def _check_settings(config: ExportConfig) -> None:
    for name, value, least in (("max_candidates", config.max_candidates, 1), ("seed", config.seed, 0)):
        if value < least:
            raise DataError(f"{name} is {value}; it must be at least {least}")
    if config.out.exists():
        raise DataError(
            f"{config.out}: is there already; a repository is written once, choose another folder"
        )


def _example_calls(loaded: LoadedRanker, contract: Contract, rng: np.random.Generator) -> list[Arrays]:
    """Several requests in one call, an empty history, and histories around and beyond the window."""
    window, most = contract.limits.window, contract.limits.max_candidates
    calls = (
        ((min(3, window), 4), (0, 2), (window, 3)),
        ((0, 1),),
        ((window - 1, 2), (window + 1, 2)),
        ((2 * window + 1, 5),),
    )
    return [
        wire_arrays(
            contract,
            [
                with_odd_candidates(example_request(loaded.features, events, min(c, most), rng))
                for events, c in call
            ],
        )
        for call in calls
    ]


@torch.no_grad()
def _write_programs(folder: Path, halves: Halves, inputs: ProfileInputs, candidates: CandidateInputs) -> None:
    """Export both halves on example inputs of three requests, and write graphs and weights."""
    profile = export_program(halves.profile, tuple(inputs), profile_shapes())
    save_program(profile, folder / model_folder.PROFILE_PROGRAM)
    save_file(weights_of(halves.profile), folder / model_folder.PROFILE_WEIGHTS)
    state = halves.profile(*inputs)
    arguments = candidate_arguments(state, inputs, _many_candidates(candidates))
    candidate = export_program(halves.candidate, arguments, candidate_shapes(len(state) // 2))
    save_program(candidate, folder / model_folder.CANDIDATE_PROGRAM)
    save_file(weights_of(halves.candidate), folder / model_folder.CANDIDATE_WEIGHTS)


def _many_candidates(candidates: CandidateInputs) -> CandidateInputs:
    """Nine of three requests, repeated as need be: a limit of one would make a size of 1, which can't be dynamic."""
    rows = torch.arange(9) % len(candidates.item_rows)
    return CandidateInputs(
        candidates.item_rows[rows],
        torch.tensor([0, 2, 7, 9]),
        candidates.sparse[rows],
        candidates.dense[rows],
    )


def _write_sample(
    folder: Path, sample: RankRequest, contract: Contract, rank: Rank, tolerance: float
) -> None:
    """A request as a client writes it, its logits by the reference, and how near served ones must be."""
    text = json.dumps(asdict(sample), indent=1)
    (folder / model_folder.SAMPLE_REQUEST).write_text(text, encoding="utf-8")
    arrays = wire_arrays(contract, [RankRequest.from_json(json.loads(text))])
    answer = {"tasks": contract.tasks, "logits": rank(arrays).tolist(), "tolerance": tolerance}
    (folder / model_folder.SAMPLE_ANSWER).write_text(json.dumps(answer, indent=1), encoding="utf-8")


def _write_titles(path: Path, dataset: Dataset, schema: Schema) -> None:
    if dataset.schema != schema:
        raise DataError(
            f"{dataset.folder}: its schema ({dataset.schema.name}) differs from the ranker's ({schema.name}); "
            "give the data that the ranker was trained on"
        )
    catalogue = dataset.catalogue
    titles = dict(zip(catalogue.item_id.tolist(), catalogue.titles, strict=True))
    path.write_text(json.dumps(titles, ensure_ascii=False, indent=0), encoding="utf-8")


def _details(loaded: LoadedRanker, parity: Parity) -> dict[str, object]:
    """What the manifest says beside the hashes."""
    return {
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "ranker": loaded.manifest.version,
        "foundation": asdict(loaded.manifest.foundation),
        "parity": asdict(parity),
        "torch": torch.__version__,
    }
