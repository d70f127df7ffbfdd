"""Every baseline computes the same logits as the ranker whole, in each part, form and mode that it is timed in."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.baselines.case_graph import case_graph, workload_of
from benchmarks.baselines.protocol import Case, Part, Session, answer
from benchmarks.baselines.variants import MODULES, make_variant
from benchmarks.workload import HISTORY_SWEEP
from serving.parity import INT8_TOLERANCE, TOLERANCE, difference

PEER_TOLERANCE = 1e-4
SMALL = ("small", "small_crossing")
CASES = [
    Case(workload, part, form)
    for workload, part in itertools.product(SMALL, ("whole", "candidates"))
    for form in ("decomposed", "plain", "folded")
]


def reference(case: Case, number: int) -> torch.Tensor:
    workload = workload_of(case)
    return workload.reference(workload.requests[number])


def gap(session: Session, case: Case, number: int = 1) -> float:
    (logits,) = session.run(number)
    return difference(reference(case, number), torch.from_numpy(np.array(logits)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_form_of_the_graph_is_the_ranker(case: Case, tmp_path: Path) -> None:
    session = make_variant("eager", 1, tmp_path).load(case)
    assert max(gap(session, case, number) for number in range(3)) <= TOLERANCE


@pytest.mark.parametrize("workload", SMALL)
def test_the_profile_graph_is_the_split_one(workload: str, tmp_path: Path) -> None:
    case = Case(workload, "profile")
    found = make_variant("eager", 1, tmp_path).load(case).run(2)
    with torch.no_grad():
        expected = workload_of(case).halves.profile(*workload_of(case).requests[2].profile)
    assert len(found) == len(expected) == (1 if workload == "small" else 3)
    for one, two in zip(found, expected, strict=True):
        assert difference(two, torch.from_numpy(np.array(one))) <= TOLERANCE


def test_no_candidate_graph_but_the_plain_one_repeats_the_profile() -> None:
    """And none makes a tensor [C, K, E]: a walk over the exported graph."""
    for form in ("decomposed", "folded", "plain"):
        case = Case("small", "candidates", form)
        graph = case_graph(case)
        width = graph.example()[0].shape[1]
        program = torch.export.export(graph.module, graph.example(), dynamic_shapes=graph.shapes)
        values = [node.meta.get("val") for node in program.graph.nodes if node.op == "call_function"]
        per_candidate = [
            value
            for value in values
            if isinstance(value, torch.Tensor) and not isinstance(value.shape[0], int)
        ]
        spread = [value for value in per_candidate if value.dim() == 2 and value.shape[1] == width]
        assert bool(spread) == (form == "plain")


@pytest.mark.parametrize("name", ["unsplit", "onnxruntime", "openvino"])
def test_peers_agree_with_the_ranker(name: str, tmp_path: Path) -> None:
    case = Case("small_crossing")
    assert gap(make_variant(name, 1, tmp_path).load(case), case) <= PEER_TOLERANCE


@pytest.mark.parametrize("name", ["eager_int8", "onnxruntime_int8", "openvino_int8"])
def test_peers_of_low_precision_are_near_and_not_float32(name: str, tmp_path: Path) -> None:
    case = Case("small", "candidates")
    assert TOLERANCE < gap(make_variant(name, 1, tmp_path).load(case), case) <= 0.2


def test_aotinductor_agrees_with_the_ranker(tmp_path: Path) -> None:
    case = Case("small", "candidates")
    assert (
        gap(make_variant("aotinductor", torch.get_num_threads(), tmp_path).load(case), case) <= PEER_TOLERANCE
    )


@pytest.mark.parametrize("workload", SMALL)
def test_the_fused_programs_agree_in_every_part_and_batch(workload: str, tmp_path: Path) -> None:
    fused = make_variant("fused", torch.get_num_threads(), tmp_path)
    for part in ("whole", "candidates"):
        case = Case(workload, part)
        session = fused.load(case)
        assert max(gap(session, case, number) for number in range(2)) <= TOLERANCE
    expected = torch.cat([reference(Case(workload), number) for number in range(1, 5)])
    for together in (True, False):
        (logits,) = fused.load(Case(workload, requests=4, together=together)).run(1)
        assert difference(expected, torch.from_numpy(logits)) <= TOLERANCE
    vectors = fused.load(Case(workload, "profile", requests=4)).run(0)
    assert vectors[0].shape[0] == 4


def test_programs_exported_once_answer_every_size_of_the_sweeps(tmp_path: Path) -> None:
    fused = make_variant("fused", torch.get_num_threads(), tmp_path)
    for tokens in (16, max(HISTORY_SWEEP)):
        case = Case("small", tokens=tokens)
        assert gap(fused.load(case), case) <= TOLERANCE


@pytest.mark.parametrize("part", ["whole", "profile", "candidates"])
def test_fused_int8_is_held_to_its_own_reference(part: Part, tmp_path: Path) -> None:
    case = Case("small_crossing", part)
    session = make_variant("fused_int8", torch.get_num_threads(), tmp_path).load(case)
    expected = session.expected(2)
    assert expected is not None
    for found, reference_of_int8 in zip(session.run(2), expected, strict=True):
        assert (
            difference(torch.from_numpy(reference_of_int8), torch.from_numpy(np.array(found)))
            <= INT8_TOLERANCE
        )
    if part != "profile":
        assert gap(session, case, 2) > TOLERANCE  # it is not float32 in disguise


def test_tuning_keeps_what_was_fastest_for_later_cases(tmp_path: Path) -> None:
    variant, case = make_variant("openvino", 1, tmp_path), Case("small", "candidates", "folded")
    session = variant.load(case)
    session.tune()
    tried = session.settings.pop("tried_ms")
    assert len(tried) == 4
    assert all(isinstance(ms, float) for ms in tried.values()), tried
    assert tried[", ".join(f"{name} {value}" for name, value in session.settings.items())] == min(
        tried.values()
    )
    assert gap(session, case) <= PEER_TOLERANCE
    later = Case("small", "candidates", "folded", candidates=5)
    assert variant.load(later).settings == session.settings


def test_requests_one_by_one_and_never_together(tmp_path: Path) -> None:
    variant, case = make_variant("eager", 1, tmp_path), Case("small", requests=4, together=False)
    (logits,) = variant.load(case).run(0)
    expected = torch.cat([reference(case, number) for number in range(4)])
    assert difference(expected, torch.from_numpy(logits)) <= TOLERANCE
    with pytest.raises(ValueError, match="one request"):
        variant.load(Case("small", requests=4))


def test_a_worker_answers_line_by_line(tmp_path: Path) -> None:
    case, out = {"workload": "small"}, tmp_path / "x.npz"
    said = [
        {"do": "load", "case": case},
        {"do": "compute", "case": case, "out": str(out)},
        {"do": "time", "case": case, "runs": 3, "drop": 1},
        {"do": "load", "case": {"workload": "small", "part": "profile", "requests": 2}},
    ]
    answers = io.StringIO()
    words = io.StringIO("".join(json.dumps(line) + "\n" for line in said))
    answer(make_variant("eager", 1, tmp_path).load, words, answers)
    settings, computed, timed, refused = map(json.loads, answers.getvalue().splitlines())
    assert settings == {"settings": {"mode": "eager"}}
    assert computed == {"expected": False}
    assert len(timed["seconds"]) == 3
    assert "one request" in refused["error"]
    found = torch.from_numpy(np.load(out)["computed_0"])
    assert difference(reference(Case("small"), 0), found) <= TOLERANCE


def test_a_peer_that_is_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr("benchmarks.baselines.variants.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"openvino needs openvino.*requirements/peers\.txt"):
        make_variant("openvino", 1, tmp_path)
    with pytest.raises(ValueError, match="variant is 'tvm'"):
        make_variant("tvm", 1, tmp_path)
    assert "eager" in MODULES
