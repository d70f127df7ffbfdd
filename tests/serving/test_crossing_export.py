"""Crossing exported: every kind of decoder, any sizes, nothing repeated, and vector mode without a trace of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from foundation.attention_tiles import AttentionConfig
from foundation.decoder import Decoder, DecoderConfig
from foundation.errors import DataError
from ranker.arches.profile_tower import DecoderTower
from ranker.artifact import LoadedRanker, load_ranker
from ranker.features.inputs import CandidateInputs, ProfileInputs
from ranker.state import Mode
from serving.candidate_arguments import candidate_arguments
from serving.contract import Contract
from serving.example_requests import example_request
from serving.model_folder import check_files
from serving.parity import TOLERANCE, Arrays, difference, split_rank, unsplit_rank
from serving.programs import Program, export_program, load_program, save_program, weights_of
from serving.rank_request import wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.split import Halves, candidate_shapes, profile_shapes, split
from serving.wire import contract_of, model_inputs

RankerFolder = Callable[[str], Path]
DECODERS = {
    "gated, sliding": (DecoderConfig(16, 3, 2, 0.0, "gated", AttentionConfig("sliding", window=5)), 2),
    "plain, prefix": (
        DecoderConfig(16, 3, 2, 0.0, attention=AttentionConfig("prefix", window=3, prefix=2)),
        1,
    ),
}


@pytest.fixture
def loaded(ranker_folder: RankerFolder) -> LoadedRanker:
    return load_ranker(ranker_folder("crossing"))


@pytest.fixture
def contract(loaded: LoadedRanker) -> Contract:
    return contract_of(loaded.features, {task.name: 0.0 for task in loaded.tasks}, max_candidates=50)


@pytest.fixture
def call(loaded: LoadedRanker, contract: Contract) -> Callable[[list[tuple[int, int]]], Arrays]:
    """Makes wire arrays of one request for each (events, candidates)."""

    def make(sizes: list[tuple[int, int]]) -> Arrays:
        rng = np.random.default_rng(0)
        return wire_arrays(contract, [example_request(loaded.features, *size, rng) for size in sizes])

    return make


def with_decoder(loaded: LoadedRanker, config: DecoderConfig, crossing_layers: int) -> None:
    """Swap the decoder for a random one."""
    tower = loaded.model.profile_tower
    assert isinstance(tower, DecoderTower)
    torch.manual_seed(0)
    tower.foundation.decoder = Decoder(config).eval()
    tower.crossing_layers = crossing_layers
    for parameter in tower.foundation.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def exported(
    halves: Halves, inputs: ProfileInputs, candidates: CandidateInputs, folder: Path
) -> tuple[Program, Program]:
    """Both graphs, traced on the given sizes, written and read back."""
    state = halves.profile(*inputs)
    arguments = candidate_arguments(state, inputs, candidates)
    shapes = candidate_shapes(len(state) // 2)
    save_program(export_program(halves.profile, tuple(inputs), profile_shapes()), folder / "profile.pt2")
    save_program(export_program(halves.candidate, arguments, shapes), folder / "candidate.pt2")
    return (
        load_program(folder / "profile.pt2", weights_of(halves.profile)),
        load_program(folder / "candidate.pt2", weights_of(halves.candidate)),
    )


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_unsplit_split_and_exported_agree_for_every_decoder(loaded, contract, call, tmp_path, name) -> None:
    with_decoder(loaded, *DECODERS[name])
    halves, features = split(loaded.model), loaded.features
    # Five candidates beside five tokens: two sizes that are alike by chance must not become one in the graph.
    profile, candidate = exported(
        halves, *model_inputs(contract, features, call([(4, 5), (2, 3), (0, 2)])), tmp_path
    )
    unsplit, cut = unsplit_rank(loaded.model, features, contract), split_rank(halves, features, contract)
    for sizes in ([(12, 9), (3, 1)], [(7, 30)], [(0, 1)], [(1, 2), (13, 2), (30, 4), (5, 6)]):
        arrays = call(sizes)
        reference = unsplit(arrays)
        inputs, candidates = model_inputs(contract, features, arrays)
        found = candidate(*candidate_arguments(profile(*inputs), inputs, candidates))[0]
        assert difference(reference, cut(arrays)) <= TOLERANCE
        assert difference(reference, found) <= TOLERANCE
        assert difference(reference, unsplit_rank(loaded.model, features, contract, "vector")(arrays)) > 0.01


@torch.no_grad()
def test_a_request_without_candidates_takes_part(loaded, contract, call) -> None:
    halves = split(loaded.model)
    inputs, candidates = model_inputs(contract, loaded.features, call([(4, 5), (2, 3), (9, 2)]))
    rows = torch.tensor([0, 1, 2, 3, 4, 8, 9])
    without = CandidateInputs(*(x[rows] if len(x) == 10 else torch.tensor([0, 5, 5, 7]) for x in candidates))
    assert difference(halves.rank(inputs, candidates)[rows], halves.rank(inputs, without)) <= TOLERANCE


def test_no_tensor_of_the_graph_repeats_a_request_for_its_candidates(loaded, contract, call) -> None:
    """Of a candidate by token there is the matrix of scores, padded by request, and nothing by head width."""
    halves = split(loaded.model)
    inputs, candidates = model_inputs(contract, loaded.features, call([(3, 4), (0, 2), (6, 3)]))
    with torch.no_grad():
        state = halves.profile(*inputs)
    arguments = candidate_arguments(state, inputs, candidates)
    program = export_program(halves.candidate, arguments, candidate_shapes(1))
    names = [node.name for node in program.graph.find_nodes(op="placeholder")]
    sizes = {node.name: node.meta["val"].shape for node in program.graph.find_nodes(op="placeholder")}
    first = next(position for position, name in enumerate(names) if name.startswith("inputs_"))
    inputs_in_order = [sizes[name] for name in names[first:]]
    (c,), (x,), (s,) = (
        symbols(inputs_in_order[1][:1]),
        symbols(inputs_in_order[5][1:]),
        symbols(inputs_in_order[9][1:]),
    )
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)
    ]
    by_token = [shape for shape in shapes if s in symbols(shape)]
    assert any(x in symbols(shape) for shape in by_token), "the scores were seen"
    assert not [shape for shape in by_token if c in symbols(shape)], "candidates are padded by request"
    head_width = arguments[-1].shape[-1]
    assert not [shape for shape in by_token if x in symbols(shape) and head_width in shape]


def symbols(shape: torch.Size) -> set[object]:
    dynamic = (size.node.expr.free_symbols for size in shape if isinstance(size, torch.SymInt))
    return set(itertools.chain.from_iterable(dynamic))


def test_the_manifest_says_the_mode_and_the_modes_share_all_other_weights(
    ranker_folder: RankerFolder, tmp_path: Path
) -> None:
    weights = {}
    modes: list[tuple[Mode | None, Mode]] = [(None, "crossing"), ("vector", "vector")]
    for asked, mode in modes:
        # Unfused: names in the fused halves are places in a list, which are not the same in both modes.
        config = ExportConfig(ranker_folder("crossing"), tmp_path / mode, 1, mode=asked, fused=False)
        parity = export_repository(config)
        folder = tmp_path / mode / "marquee" / "1"
        manifest = check_files(folder)
        assert manifest["mode"] == mode
        assert manifest["kernels"]["not_fused"].keys() == {"profile", "candidate"}
        assert max(parity.split, parity.exported) <= TOLERANCE
        weights[mode] = load_file(folder / "candidate.safetensors")
    vector, crossing = weights["vector"], weights["crossing"]
    assert not any("cross" in name for name in vector), "of crossing no trace"
    assert vector.keys() < crossing.keys()
    assert all(torch.equal(tensor, crossing[name]) for name, tensor in vector.items())
    assert not any(name.startswith("crossed.decoder.blocks.1") for name in crossing), "the top layer alone"


@pytest.mark.parametrize("tower", ["decoder", "pooled"])
def test_a_ranker_without_crossed_layers_has_no_crossing_to_export(ranker_folder, tmp_path, tower) -> None:
    with pytest.raises(DataError, match=f'{tower}: mode is "crossing"; RankerConfig.crossing_layers must be'):
        export_repository(ExportConfig(ranker_folder(tower), tmp_path / "out", mode="crossing"))
    assert not (tmp_path / "out").exists()
    assert load_ranker(ranker_folder(tower)).model.mode() == "vector"
