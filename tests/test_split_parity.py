"""The cut: whole, split and exported, the ranker gives the same logits, and the profile is never spread out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.artifact import LoadedRanker, load_ranker
from ranker.state import Mode
from serving.contract import Contract
from serving.example_requests import example_request, with_odd_candidates
from serving.fuse import fuse
from serving.parity import TOLERANCE, Arrays, Rank, difference, split_rank, unsplit_rank
from serving.programs import export_program
from serving.rank_request import History, RankRequest, wire_arrays
from serving.repository import ExportConfig, export_repository
from serving.served_ranker import ServedRanker
from serving.split import candidate_shapes, split
from serving.wire import contract_of, model_inputs

FORMS: dict[str, Mode | None] = {
    "decoder": None,
    "pooled": None,
    "crossing": "crossing",
    "uncrossed": "vector",
}
"""Rankers and the mode in which each is cut; `uncrossed` is that of `crossing`, served by its vector."""


class Cut:
    """One trained ranker in its three forms."""

    def __init__(self, ranker: Path, repository: Path, mode: Mode | None) -> None:
        self.trained: LoadedRanker = load_ranker(ranker)
        features, tasks = self.trained.features, self.trained.tasks
        self.contract: Contract = contract_of(features, {task.name: 0.0 for task in tasks}, 100)
        self.halves = split(self.trained.model, mode)
        fuse(self.halves)
        export_repository(ExportConfig(ranker, repository, mode=mode))
        self.unsplit: Rank = unsplit_rank(self.trained.model, features, self.contract, mode)
        self.split: Rank = split_rank(self.halves, features, self.contract)
        self.exported: Rank = ServedRanker(repository / "marquee" / "1").rank

    def requests(self, sizes: list[tuple[int, int]], seed: int = 0) -> list[RankRequest]:
        """One request of each (events, candidates)."""
        rng = np.random.default_rng(seed)
        return [with_odd_candidates(example_request(self.trained.features, *size, rng)) for size in sizes]

    def arrays(self, requests: list[RankRequest]) -> Arrays:
        return wire_arrays(self.contract, requests)


@pytest.fixture(scope="module")
def cuts(ranker_folder, tmp_path_factory) -> dict[str, Cut]:
    folder = tmp_path_factory.mktemp("cuts")
    kinds = {form: "crossing" if form == "uncrossed" else form for form in FORMS}
    return {form: Cut(ranker_folder(kinds[form]), folder / form, mode) for form, mode in FORMS.items()}


@pytest.fixture(scope="module")
def decoder(cuts) -> Cut:
    return cuts["decoder"]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_unsplit_split_and_exported_agree(cuts, form: str, sizes, seed: int):
    cut = cuts[form]
    arrays = cut.arrays(cut.requests(sizes, seed))
    reference = cut.unsplit(arrays)
    assert reference.shape == (sum(c for _, c in sizes), 2)
    assert difference(reference, cut.split(arrays)) <= TOLERANCE
    assert difference(reference, cut.exported(arrays)) <= TOLERANCE


def test_logits_are_worth_comparing(decoder: Cut):
    """The gate would hold for a ranker that answers nothing: this one's logits differ by request and candidate."""
    logits = decoder.unsplit(decoder.arrays(decoder.requests([(10, 6), (10, 6)])))
    assert logits.abs().max() > 1
    assert logits[:6].std(dim=0).min() > 0.1
    assert (logits[:6].mean(dim=0) - logits[6:].mean(dim=0)).abs().max() > 0.01


def test_no_tensor_of_the_candidate_graph_spreads_the_profile(decoder: Cut):
    inputs, candidates = model_inputs(
        decoder.contract, decoder.trained.features, decoder.arrays(decoder.requests([(3, 4), (0, 2), (5, 3)]))
    )
    (vector,) = decoder.halves.profile(*inputs)
    width = vector.shape[1]
    weights = decoder.halves.candidate.state_dict().values()
    widths = {
        size for tensor in weights for size in tensor.shape[1:]
    }  # packed weights are [panels, width, 16]
    assert width in widths, "the profile's width must be recognisable in the graph"
    program = export_program(decoder.halves.candidate, (vector, *candidates), candidate_shapes())
    num_candidates = _placeholder(program, "inputs_1").shape[0]
    num_requests = _placeholder(program, "inputs_0").shape[0]
    spread, per_candidate, per_request = [], 0, 0
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        symbols = set(itertools.chain.from_iterable(_symbols(size) for size in value.shape))
        is_per_candidate = _symbols(num_candidates) <= symbols
        per_candidate += is_per_candidate
        per_request += _symbols(num_requests) <= symbols
        if is_per_candidate and (width in value.shape or value.dim() > 2):
            spread.append((node.name, tuple(value.shape)))
    assert per_candidate >= 3, "the walk must have seen the tensors of the candidates"
    assert per_request >= 3, "and those of the requests"
    assert not spread


def _placeholder(program: torch.export.ExportedProgram, name: str) -> torch.Tensor:
    (node,) = (node for node in program.graph.find_nodes(op="placeholder") if node.name == name)
    return node.meta["val"]


def _symbols(size: int | torch.SymInt) -> set[object]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def test_the_unfused_layer_would_be_found(ranker_folder, decoder: Cut):
    """The walk above is able to fail: the reference layer does gather the dot-product queries by candidate."""
    halves = split(load_ranker(ranker_folder("decoder")).model)
    inputs, candidates = model_inputs(
        decoder.contract, decoder.trained.features, decoder.arrays(decoder.requests([(3, 4), (0, 2), (5, 3)]))
    )
    (vector,) = halves.profile(*inputs)
    program = export_program(halves.candidate, (vector, *candidates), candidate_shapes())
    symbol = _symbols(_placeholder(program, "inputs_1").shape[0])
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert any(
        isinstance(value, torch.Tensor) and value.dim() > 2 and symbol <= _symbols(value.shape[0])
        for value in values
    )


@pytest.mark.parametrize("form", ["unsplit", "split", "exported"])
def test_an_appended_event_changes_the_scores_of_its_request_alone(decoder: Cut, form: str):
    first, second = decoder.requests([(6, 5), (6, 5)], seed=3)
    history = second.history
    shorter = RankRequest(
        second.timestamp,
        second.candidates,
        History(
            history.item_id[:-1],
            history.timestamp[:-1],
            {name: values[:-1] for name, values in history.facets.items()},
        ),
        second.context,
        second.profile,
    )
    rank: Rank = getattr(decoder, form)
    before, after = rank(decoder.arrays([first, shorter])), rank(decoder.arrays([first, second]))
    assert difference(before[:5], after[:5]) <= TOLERANCE
    assert (before[5:] - after[5:]).abs().min() > 1e-4


def test_a_score_depends_on_its_request_and_candidate_alone(decoder: Cut):
    requests = decoder.requests([(9, 6), (4, 3)], seed=1)
    together = decoder.exported(decoder.arrays(requests))
    alone = torch.cat([decoder.exported(decoder.arrays([request])) for request in requests])
    assert difference(together, alone) <= TOLERANCE
    backwards = [
        RankRequest(**{**vars(request), "candidates": request.candidates[::-1]}) for request in requests
    ]
    reverse = decoder.exported(decoder.arrays(backwards))
    assert difference(together[:6], reverse[:6].flip(0)) <= TOLERANCE


def test_splitting_leaves_the_ranker_as_it_was(ranker_folder):
    ranker = load_ranker(ranker_folder("decoder")).model
    before = {name: tensor.clone() for name, tensor in ranker.state_dict().items()}
    halves = split(ranker)
    fuse(halves)
    for tensor in (*halves.profile.parameters(), *halves.candidate.parameters()):
        tensor.data.zero_()
    after = ranker.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
