"""Every part that a ranker can be made of: kept in its artifact, cut, fused and exported with the same logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.export import ExportedProgram

from foundation.dataset import Dataset
from foundation.release import load_release
from ranker.arches.interaction import InteractionConfig
from ranker.arches.taps import ProfileConfig
from ranker.artifact import LoadedRanker, TrainedRanker, load_ranker, save_ranker
from ranker.assembly import assemble_on, row_features
from ranker.features.candidate_features import CandidateFeature, known_features
from ranker.model import RankerConfig
from ranker.schema import load_tasks
from serving.example_requests import example_request, with_odd_candidates
from serving.fuse import fuse
from serving.model_folder import CANDIDATE_PROGRAM
from serving.parity import TOLERANCE, Arrays, Rank, difference, split_rank, unsplit_rank
from serving.rank_request import wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.served_ranker import ServedRanker
from serving.split import split
from serving.wire import contract_of

INTERACTION = InteractionConfig(
    3, 20, (24, 12), cross_layers=2, cross_width=6, cross_rank=3, head_widths=(8,)
)
MIXED = ProfileConfig((1, 2), mix_taps=True, tap_tokens="attention", tap_recent=4)
CONFIGS = {
    "taps of the last token, cross network": RankerConfig(
        "decoder", 4, 8, interaction=INTERACTION, profile=ProfileConfig((2, 1))
    ),
    "crossing, all options": RankerConfig(
        "decoder", 4, 8, 5, INTERACTION, crossing_layers=1, dense_widths=(6,), profile=MIXED
    ),
    "pooled, cross network, dense": RankerConfig("pooled", 4, 8, 5, INTERACTION, dense_widths=(6,)),
}
DECLARED = (
    CandidateFeature("retrieval", "numeric", "scores", boundaries=(0.25, 0.5, 0.75)),
    CandidateFeature("row", "categorical", "rows"),
)
SEEN = {"retrieval": np.linspace(0, 1, 9, dtype=np.float32), "row": np.arange(4)}


class Forms(NamedTuple):
    """One ranker in its three forms, and what calls are made with."""

    loaded: LoadedRanker
    call: Callable[[list[tuple[int, int]], int], Arrays]
    """Wire arrays of requests of so many (events, candidates), with a seed."""
    ranks: dict[str, Rank]
    program: ExportedProgram


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def forms(
    request: pytest.FixtureRequest,
    ranker_folder: Callable[[str], Path],
    synthetic_folder: Path,
    synthetic_dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Forms:
    folder = tmp_path_factory.mktemp("options")
    _write(CONFIGS[request.param], folder / "ranker", ranker_folder, synthetic_folder, synthetic_dataset)
    loaded = load_ranker(folder / "ranker")
    contract = contract_of(loaded.features, {task.name: 0.0 for task in loaded.tasks}, max_candidates=100)
    halves = split(loaded.model)
    fuse(halves)
    export_repository(ExportConfig(folder / "ranker", folder / "repository"))

    def call(sizes: list[tuple[int, int]], seed: int) -> Arrays:
        rng = np.random.default_rng(seed)
        requests = [with_odd_candidates(example_request(loaded.features, *size, rng)) for size in sizes]
        return wire_arrays(contract, requests)

    served = folder / "repository" / "marquee" / "1"
    ranks = {
        "unsplit": unsplit_rank(loaded.model, loaded.features, contract),
        "split": split_rank(halves, loaded.features, contract),
        "exported": ServedRanker(served).rank,
    }
    return Forms(loaded, call, ranks, torch.export.load(served / CANDIDATE_PROGRAM))


def _write(config: RankerConfig, folder: Path, ranker_folder, synthetic_folder, dataset) -> None:
    release = load_release(ranker_folder("decoder").with_name("decoder_release"))
    tasks = load_tasks(synthetic_folder / "schema.toml")
    data = row_features(dataset, release, known_features(DECLARED, SEEN))
    torch.manual_seed(0)
    assembly = assemble_on(config, data, release, [task.name for task in tasks])
    with torch.no_grad():
        for parameter in assembly.model.parameters():
            # Away from their start, where some are zero; large, so that a wrong input shows.
            parameter.mul_(2).add_(torch.randn_like(parameter), alpha=0.1)
    save_ranker(folder, TrainedRanker(assembly.model, assembly.features, tasks), release.manifest, {})


def test_the_artifact_keeps_the_options(forms: Forms) -> None:
    assert forms.loaded.model.config in CONFIGS.values()


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_unsplit_split_and_exported_agree(forms: Forms, sizes: list[tuple[int, int]], seed: int) -> None:
    arrays = forms.call(sizes, seed)
    reference = forms.ranks["unsplit"](arrays)
    assert reference.shape == (sum(candidates for _, candidates in sizes), 2)
    assert difference(reference, forms.ranks["split"](arrays)) <= TOLERANCE
    assert difference(reference, forms.ranks["exported"](arrays)) <= TOLERANCE


def test_logits_are_worth_comparing(forms: Forms) -> None:
    logits = forms.ranks["unsplit"](forms.call([(10, 6), (10, 6)], 0))
    assert logits.abs().max() > 0.5
    assert logits[:6].std(dim=0).min() > 0.02
    assert (logits[:6].mean(dim=0) - logits[6:].mean(dim=0)).abs().max() > 0.01


def test_no_tensor_of_the_candidate_graph_spreads_the_profile(forms: Forms) -> None:
    width = forms.loaded.model.profile_tower.width
    (rows,) = (node for node in forms.program.graph.find_nodes(op="placeholder") if node.name == "inputs_1")
    per_candidate = _symbols(rows.meta["val"].shape[0])
    values = [node.meta.get("val") for node in forms.program.graph.nodes]
    tensors = [value for value in values if isinstance(value, Tensor)]
    assert any(width in value.shape for value in tensors), "the profile's width must be recognisable"
    of_candidates = [
        value for value in tensors if per_candidate <= set(itertools.chain(*map(_symbols, value.shape)))
    ]
    assert len(of_candidates) >= 5
    assert not [value.shape for value in of_candidates if width in value.shape]
    queries = (forms.loaded.model.interaction.num_dots, forms.loaded.model.interaction.dot_width)
    assert not [value.shape for value in of_candidates if tuple(value.shape[1:]) == queries]


def _symbols(size: int | torch.SymInt) -> set[object]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()
