"""Processes of variants, stood in for by a script: who is timed, in which order, and what a lost one leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from benchmarks.baselines.process import Worker, WorkerLost, forget_peak, memory_bytes
from benchmarks.baselines.protocol import Case, to_json
from benchmarks.compared import Entry, cases_of, rounds
from benchmarks.comparison import DROPPED_RUNS, Comparison, Patience, difference
from benchmarks.memory_growth import memory_growth

ROOT = Path(__file__).resolve().parents[2]
WHOLE = Case("reference")

Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a variant's stand-in; the journal of all is `tmp_path / "journal"`."""

    def start(name: str, behaviour: str = "right") -> Worker:
        script = str(Path(__file__).with_name("fake_worker.py"))
        command = [sys.executable, script, name, behaviour, str(tmp_path / "journal")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return Worker(name, command, tmp_path / f"{name}.log", environment)

    return start


@pytest.fixture
def compare(start: Start, tmp_path: Path) -> Iterator[Callable[..., Comparison]]:
    with ExitStack() as stack:

        def compare(behaviours: Mapping[str, str], answer_s: float = 60) -> Comparison:
            workers = {
                name: stack.enter_context(closing(start(name, behaviour)))
                for name, behaviour in behaviours.items()
            }
            said: list[str] = []
            return Comparison(workers, tmp_path, said.append, Patience(60, answer_s))

        yield compare


def _run(comparison: Comparison, entries: list[Entry], blocks: int = 3, runs: int = 4) -> None:
    comparison.load(entries)
    comparison.tune(entries)
    comparison.check(entries)
    comparison.time([entries], blocks, runs)


def _entries(*names: str) -> list[Entry]:
    return [Entry(name, WHOLE) for name in names]


def test_variants_take_turns_in_an_order_that_moves_on(compare, tmp_path: Path) -> None:
    names = ("eager", "fused", "openvino")
    comparison = compare(dict.fromkeys(names, "right"))
    entries = _entries(*names)
    comparison.load(entries)
    comparison.check(entries)
    (tmp_path / "journal").unlink()
    betweens: list[int] = []
    comparison.time([entries], num_blocks=3, num_runs=2, between=lambda: betweens.append(1))
    runs = [line.split() for line in (tmp_path / "journal").read_text().splitlines()]
    order = [name for name, _, number in runs if number == "0"]
    assert order == [*names, *names[1:], names[0], names[2], *names[:2]]
    assert len(runs) == 3 * 3 * (2 + DROPPED_RUNS)
    assert {len(block) for blocks in comparison.found.blocks.values() for block in blocks} == {2}
    assert len(betweens) == 3


def test_all_but_the_timed_one_are_stopped(start: Start) -> None:
    with closing(start("eager")) as worker:
        worker.ask("load", 60, case=to_json(WHOLE))
        worker.stop()
        assert _state(worker.pid) == "T"
        with worker.awake():
            assert _state(worker.pid) != "T"
            assert len(worker.ask("time", 60, case=to_json(WHOLE), runs=2, drop=1)["seconds"]) == 2
        assert _state(worker.pid) == "T"
        pid = worker.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_stopped_process_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("fake_worker.py"))
    command = [sys.executable, script, "eager", "right", str(tmp_path / "journal")]
    parent = f"""
import os, signal
from pathlib import Path
from benchmarks.baselines.process import Worker
from benchmarks.baselines.protocol import Case, to_json
worker = Worker("eager", {command!r}, Path({str(tmp_path / "log")!r}), {{**os.environ, "PYTHONPATH": {str(ROOT)!r}}})
worker.ask("load", 60, case=to_json(Case("reference")))
worker.stop()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", parent], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    process, patience = Path(f"/proc/{int(done.stdout)}"), monotonic() + 10
    while process.exists() and _state(int(done.stdout)) != "Z" and monotonic() < patience:
        sleep(0.02)
    assert not process.exists() or _state(int(done.stdout)) == "Z"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_wrong_variant_is_not_timed(compare) -> None:
    comparison = compare({"eager": "right", "onnxruntime": "sick", "fused": "right"})
    _run(comparison, _entries("eager", "onnxruntime", "fused"))
    found = comparison.found
    wrong = Entry("onnxruntime", WHOLE)
    # 0.5 off logits of 1 (request 0) and 2 (request 1): each output by itself.
    assert found.parity[wrong] == 0.5
    assert set(found.refused) == {str(wrong)} and "5.00e-01 is above 1e-04" in found.refused[str(wrong)]
    assert set(found.blocks) == set(_entries("eager", "fused"))
    assert found.settings[Entry("fused", WHOLE)] == {"tuned": True}


def test_low_precision_is_held_to_its_own_reference(compare) -> None:
    comparison = compare({"eager": "right", "fused_int8": "sick", "openvino_int8": "sick"})
    _run(comparison, _entries("eager", "fused_int8", "openvino_int8"))
    ours, peers = _entries("fused_int8", "openvino_int8")
    assert not comparison.found.refused
    assert comparison.found.parity == {Entry("eager", WHOLE): 0.0, ours: 0.0, peers: 0.5}
    assert comparison.found.float32_difference == {ours: 0.5, peers: 0.5}


def test_the_unsplit_graph_vouches_for_the_reference(compare) -> None:
    comparison = compare({"eager": "right", "unsplit": "sick"})
    _run(comparison, _entries("eager", "unsplit"))
    assert set(comparison.found.refused) == {"unsplit reference-whole"}
    comparison = compare({"eager": "right", "unsplit": "right"})
    _run(comparison, _entries("eager", "unsplit"))
    assert comparison.found.parity == dict.fromkeys(_entries("eager", "unsplit"), 0.0)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("dead", r"at reference-whole: onnxruntime: its process ended \(status 3\)[^$]*out of memory, says"),
        ("hung", "at reference-whole: onnxruntime: its process did not answer within 2 s"),
    ],
)
def test_a_lost_process_takes_its_variant_along_and_no_other(compare, behaviour: str, reason: str) -> None:
    names = ("eager", "onnxruntime", "fused")
    comparison = compare({**dict.fromkeys(names, "right"), "onnxruntime": behaviour}, answer_s=2)
    _run(comparison, _entries(*names))
    assert set(comparison.found.refused) == {"onnxruntime"}
    with pytest.raises(ValueError, match=reason):
        raise ValueError(comparison.found.refused["onnxruntime"])
    assert set(comparison.found.blocks) == set(_entries("eager", "fused"))
    assert {len(blocks) for blocks in comparison.found.blocks.values()} == {3}


def test_what_can_not_be_loaded_is_named(compare) -> None:
    comparison = compare({"eager": "right", "aotinductor": "broken", "fused": "loud"})
    _run(comparison, _entries("eager", "aotinductor", "fused"))
    refused = comparison.found.refused
    assert refused == {"aotinductor reference-whole": "could not be loaded: ValueError: no such graph"}
    assert set(comparison.found.blocks) == set(_entries("eager", "fused"))


def test_other_forms_and_calls_are_held_to_what_the_reference_computes_once(compare) -> None:
    names = ("eager", "onnxruntime", "fused", "unsplit")
    comparison = compare(dict.fromkeys(names, "right"))
    entries = [entry for group in rounds(cases_of("reference"), names) for entry in group]
    assert len(set(entries)) == len(entries) == 4 + 3 + (3 + 4 + 2) + 2
    _run(comparison, entries, blocks=1, runs=1)
    assert not comparison.found.refused and set(comparison.found.blocks) == set(entries)


def test_growth_counts_from_what_is_resident_once_loaded(start: Start) -> None:
    patience = Patience(60, 60)
    assert 0 <= memory_growth(lambda: start("fused"), WHOLE, patience) < 2**24
    with pytest.raises(WorkerLost, match="no such graph"):
        memory_growth(lambda: start("fused", "broken"), WHOLE, patience)


def test_a_peak_is_forgotten() -> None:
    filled = np.ones(2**24)
    before = memory_bytes(os.getpid())
    del filled
    forget_peak(os.getpid())
    after = memory_bytes(os.getpid())
    assert after["peak"] < before["peak"]
    assert before["peak"] >= before["resident"] > 2**26


def test_difference_notices_shapes_and_what_is_no_number() -> None:
    ones = np.ones((2, 2), dtype=np.float32)
    assert difference([ones], [ones[:1]]) == difference([ones], []) == float("inf")
    assert np.isnan(difference([ones], [ones * np.nan]))
    assert difference([ones * 4], [ones * 5]) == 0.25 and difference([ones * 0], [ones]) == 1.0
