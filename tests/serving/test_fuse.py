"""What runs fused after an export, what doesn't and why; and that nothing is left of what was swapped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch.export import ExportedProgram

from foundation.aggregation import AggregationConfig
from foundation.attention_tiles import AttentionConfig
from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.foreign.config import ForeignConfig
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig
from foundation.pretraining import build_model
from foundation.release import Release, load_release, save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig
from ranker.arches.interaction import InteractionConfig
from ranker.arches.taps import ProfileConfig
from ranker.artifact import TrainedRanker, save_ranker
from ranker.assembly import assemble_ranker
from ranker.model import RankerConfig
from ranker.schema import load_tasks
from serving import model_folder
from serving.model_folder import check_files
from serving.parity import TOLERANCE
from serving.repository import ExportConfig, export_repository

DECODER = "profile.tower.foundation.decoder"
CROSSED = "candidate.crossed.decoder"
INTERACTION = "candidate.interaction"
FOUNDATION = FoundationConfig(DecoderConfig(16, 2, 2), WindowConfig(12, 4))
RANKER = RankerConfig("decoder", 4, 8, interaction=InteractionConfig(3, 20, (24, 12)))
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}


class Case(NamedTuple):
    """A ranker, the parts of it that are fused, and of the others words of the reason."""

    foundation: FoundationConfig
    ranker: RankerConfig
    fused: set[str]
    not_fused: dict[str, str]


def of(
    foundation: FoundationConfig = FOUNDATION,
    ranker: RankerConfig = RANKER,
    not_fused: dict[str, str] | None = None,
) -> Case:
    """A case in which everything is fused but what is named."""
    parts = {DECODER, INTERACTION, *([CROSSED] if ranker.crossing_layers else [])}
    return Case(foundation, ranker, parts - (not_fused or {}).keys(), not_fused or {})


def decoder(**changes: object) -> FoundationConfig:
    return replace(FOUNDATION, decoder=replace(FOUNDATION.decoder, **changes))


def interaction(**changes: object) -> RankerConfig:
    return replace(RANKER, interaction=replace(RANKER.interaction, **changes))


PREFIX = decoder(attention=AttentionConfig("prefix", window=4, prefix=3))
MEAN = replace(FOUNDATION, aggregation=AggregationConfig("mean", 3))
MIX = replace(FOUNDATION, aggregation=AggregationConfig(layers="mix"))
FOREIGN = replace(FOUNDATION, foreign=ForeignConfig("hugging_face", json.dumps(GPT2)))
CASES = {
    "crossing, prefix": of(PREFIX, replace(RANKER, crossing_layers=2)),
    "mean of tokens, one hidden layer": of(MEAN, interaction(hidden_widths=(20,))),
    "gated, task towers": of(
        decoder(block="gated"),
        replace(interaction(head_widths=(6,)), crossing_layers=1),
        {DECODER: "'gated'", CROSSED: "'gated'", INTERACTION: "each task's own"},
    ),
    "foreign, cross network": of(
        FOREIGN,
        replace(interaction(cross_layers=1), crossing_layers=2),
        {DECODER: "another library's", CROSSED: "another library's", INTERACTION: "cross network"},
    ),
    "layer mix": of(MIX, RANKER, {DECODER: "below the top"}),
    "taps": of(FOUNDATION, replace(RANKER, profile=ProfileConfig((1,))), {DECODER: "below the top"}),
}
WITHOUT_DECODER = Case(
    FOUNDATION, replace(RANKER, tower="pooled"), {INTERACTION}, {"profile.tower": "no decoder"}
)


@pytest.fixture(scope="module", params=[*CASES, "pooled"])
def case(request: pytest.FixtureRequest) -> Case:
    return WITHOUT_DECODER if request.param == "pooled" else CASES[request.param]


Write = Callable[[Case], Path]


@pytest.fixture(scope="module")
def write(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes the ranker of a case, with large random weights."""

    def write_case(case: Case) -> Path:
        folder = tmp_path_factory.mktemp("case")
        torch.manual_seed(0)
        release = _release(case.foundation, synthetic_dataset, folder / "release")
        tasks = load_tasks(synthetic_dataset.folder / "schema.toml")
        assembly = assemble_ranker(case.ranker, synthetic_dataset, release, [task.name for task in tasks])
        with torch.no_grad():
            for parameter in assembly.model.parameters():
                parameter.mul_(2).add_(torch.randn_like(parameter), alpha=0.1)
        trained = TrainedRanker(assembly.model, assembly.features, tasks)
        save_ranker(folder / "ranker", trained, release.manifest, {})
        return folder / "ranker"

    return write_case


def _release(config: FoundationConfig, dataset: Dataset, folder: Path) -> Release:
    tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
    model = build_model(config, tokenizer, dataset)
    save_release(folder, model, tokenizer, training_data_of(dataset), {})
    return load_release(folder)


@pytest.fixture(scope="module")
def exported(case: Case, write: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a case."""
    repository = tmp_path_factory.mktemp("exported") / "repository"
    parity = export_repository(ExportConfig(write(case), repository))
    assert max(parity.split, parity.exported) <= TOLERANCE
    return repository / "marquee" / "1"


def programs(folder: Path) -> dict[str, ExportedProgram]:
    files = {"profile": model_folder.PROFILE_PROGRAM, "candidate": model_folder.CANDIDATE_PROGRAM}
    return {half: torch.export.load(folder / file) for half, file in files.items()}


def operators(program: ExportedProgram) -> set[str]:
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return {name.removeprefix("marquee.").split(".")[0] for name in names if name.startswith("marquee.")}


def test_the_manifest_says_what_is_fused_and_why_the_rest_is_not(case: Case, exported: Path) -> None:
    kernels = check_files(exported)["kernels"]
    wholes = {name: kernels["fused"].get(name) for name in case.fused}
    assert all(wholes.values()), kernels
    assert kernels["not_fused"].keys() == case.not_fused.keys()
    for name, words in case.not_fused.items():
        assert words in kernels["not_fused"][name]


def test_the_graphs_call_what_the_manifest_says_and_nothing_else_of_ours(exported: Path) -> None:
    fused = check_files(exported)["kernels"]["fused"]
    for half, program in programs(exported).items():
        expected = {operator for name, operator in fused.items() if name.startswith(half)}
        assert {f"marquee::{name}" for name in operators(program)} == expected


def test_every_weight_that_is_saved_is_read(exported: Path) -> None:
    for half, program in programs(exported).items():
        weights = [node for node in program.graph.find_nodes(op="placeholder") if "weights_" in node.name]
        with safe_open(exported / f"{half}.safetensors", "pt") as file:
            names = sorted(file.keys())
        assert len(weights) == len(names)
        assert not [name for name, node in zip(names, weights, strict=True) if not node.users]
