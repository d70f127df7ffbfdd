"""The comparison's document: its shape, its arithmetic, and its silence about what is wrong."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.baselines.process import Worker
from benchmarks.baselines.variants import MODULES
from benchmarks.ceiling import Machine
from benchmarks.compared import BEST_OF, VARIANTS, Entry, cases_of
from benchmarks.comparison import Findings
from benchmarks.comparison_report import best_peer, document, table
from benchmarks.floor import Floor
from benchmarks.latency import LatencyConfig, measure
from benchmarks.least_products import Product
from benchmarks.stations import Stations
from benchmarks.sweep_plot import plot_sweeps
from foundation.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
CASES = cases_of("reference")
RATIOS = {
    "fused_vs_best_peer_cold": 0.8,
    "fused_int8_vs_best_peer_cold": 0.5,
    "fused_int8_vs_best_int8_peer_cold": 2.0,
    "fused_candidates_vs_best_peer": 0.5,
    "fused_candidates_vs_best_peer_plain": 0.25,
    "fused_candidates_vs_best_peer_folded": 0.625,
    "candidates_500_to_1000": 2.0,
    "batch_of_4_vs_4_alone": 0.75,
}


def _findings() -> Findings:
    """Two blocks of one run in ms, the second twice as slow for all."""
    ms: dict[Entry, float] = {
        Entry("fused", CASES.whole): 16,
        Entry("fused_int8", CASES.whole): 10,
        Entry("fused", CASES.candidates): 1,
        Entry("fused", CASES.candidates_500): 1,
        Entry("fused", CASES.candidates_1000): 2,
        Entry("fused", CASES.batch): 48,
        Entry("fused", CASES.alone): 64,
        Entry("unsplit", CASES.whole): 500,
        Entry("onnxruntime", CASES.whole): 20,
        # The best is another one on another case.
        Entry("openvino", CASES.whole): 22,
        Entry("openvino", CASES.candidates): 2,
        Entry("onnxruntime", CASES.candidates): 2.5,
        Entry("openvino", CASES.plain): 4,
        Entry("eager", CASES.folded): 1.6,
        # No peer of the four, however fast.
        Entry("openvino_int8", CASES.whole): 5,
    }
    found = Findings(parity=dict.fromkeys(ms, 1e-7))
    found.blocks = {entry: [[time * 1e-3], [time * 2e-3]] for entry, time in ms.items()}
    return found


@pytest.fixture
def floor() -> Floor:
    floor = Floor([Product("profile", 64, 64, 64), Product("candidates", 64, 64, 64)], Machine(100.0, 10.0))
    for _ in range(3):
        floor.measure()
    return floor


def test_each_ratio_is_of_the_two_that_it_names(floor: Floor) -> None:
    report = document(_findings(), CASES, floor)
    ratios = dict(report["ratios"])
    assert ratios.pop("fused_cold_vs_floor") == pytest.approx(16 / floor.ms, rel=1e-3)
    assert ratios.pop("fused_cold_vs_luckiest_floor") >= 16 / floor.ms * 0.999
    assert ratios == RATIOS
    # Both sides of a pair slow down alike, so that the interval is a point.
    assert report["ratios_ci95"]["fused_vs_best_peer_cold"] == [0.8, 0.8]
    assert report["best_peer"] == {
        "cold": "onnxruntime",
        "candidates": "openvino",
        "candidates_plain": "openvino",
        "candidates_folded": "eager",
    }
    assert report["variants"]["fused"]["p50_ms"] == 16.0 and report["variants"]["fused"]["p99_ms"] == 32.0
    assert report["variants"]["fused_int8"]["low_precision"]
    assert report["parts"]["candidates"] == {"fused": 1.0, "openvino": 2.0, "onnxruntime": 2.5}
    assert {"p50_ms", "p95_ms", "p99_ms", "parity", "low_precision"} <= set(report["variants"]["unsplit"])


def test_what_was_not_timed_has_no_speed_and_no_ratio(floor: Floor) -> None:
    found = _findings()
    del found.blocks[Entry("fused", CASES.whole)]
    found.refused["fused reference-whole"] = "parity 1.00e+00 is above 1e-05: not timed"
    report = document(found, CASES, floor)
    assert "fused" not in report["variants"] and "fused_cold_vs_floor" not in report["ratios"]
    assert "fused_vs_best_peer_cold" not in report["ratios"] and "candidates_500_to_1000" in report["ratios"]
    assert "refused: parity 1.00e+00" in table(report)
    assert best_peer(Findings(), CASES.whole) is None


def test_what_was_too_slow_for_every_block_has_a_speed_and_no_ratio(floor: Floor) -> None:
    found = _findings()
    found.blocks[Entry("fused_int8", CASES.whole)].pop()
    report = document(found, CASES, floor)
    assert report["variants"]["fused_int8"]["p50_ms"] == 10.0
    assert not any(name.startswith("fused_int8") for name in report["ratios"])
    assert report["ratios"]["fused_vs_best_peer_cold"] == 0.8


def test_the_table_has_a_row_for_each_variant_and_ratio(floor: Floor) -> None:
    report = document(_findings(), CASES, floor)
    lines = table(report).splitlines()
    for name in (*report["variants"], *report["ratios"]):
        assert any(line.startswith(name) for line in lines), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"blocks": 0}, "--blocks is 0"),
        ({"runs": 0}, "--runs is 0"),
        ({"threads": -1}, "--threads is -1"),
        ({"variants": ("tensorflow",)}, "there is no 'tensorflow'"),
        ({"plot": Path("latency.pdf")}, "a PNG is written"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        LatencyConfig(**settings)


def test_every_worker_is_compared() -> None:
    assert set(LatencyConfig().variants) == set(MODULES)


def test_the_reference_always_takes_part() -> None:
    assert LatencyConfig(variants=("fused", "onnxruntime")).all_variants == ("eager", "onnxruntime", "fused")


def test_the_whole_run_with_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: Floor) -> None:
    """Everything but the variants is real: processes, checks, blocks, sweeps, memory and the document."""
    monkeypatch.setattr(latency, "_floor", lambda workload: floor)
    monkeypatch.setattr(latency, "MEMORY_PROCESSES", 1)
    monkeypatch.setattr(latency, "CANDIDATE_SWEEP", (5, 10))
    monkeypatch.setattr(latency, "HISTORY_SWEEP", (3, 6))
    behaviours = {**dict.fromkeys(VARIANTS, "right"), "openvino_int8": "broken"}

    def start(name: str) -> Worker:
        script = str(Path(__file__).with_name("fake_worker.py"))
        command = [sys.executable, script, name, behaviours[name], str(tmp_path / "journal")]
        return Worker(name, command, tmp_path / f"{name}.log", {**os.environ, "PYTHONPATH": str(ROOT)})

    shown = io.StringIO()
    config = LatencyConfig(
        variants=tuple(VARIANTS), blocks=2, runs=2, threads=1, plot=tmp_path / "latency.png"
    )
    report = json.loads(json.dumps(measure(config, start, tmp_path, Stations(shown))))

    assert "floor:" in shown.getvalue()
    assert set(report["variants"]) == set(VARIANTS) - {"openvino_int8"}
    assert all("could not be loaded" in reason for reason in report["refused"].values())
    assert {name.split()[0] for name in report["refused"]} == {"openvino_int8"}
    assert (
        set(report["ratios"])
        == set(report["ratios_ci95"])
        == {
            *RATIOS,
            "fused_cold_vs_floor",
            "fused_cold_vs_luckiest_floor",
            "memory_vs_onnxruntime",
        }
    )
    assert set(report["parts"]["candidates_plain"]) == set(BEST_OF)
    assert report["variants"]["fused"]["count"] == 2 * 2 and report["floor_ms"] == round(floor.ms, 3)
    assert report["environment"]["commit"] and report["settings"]["workload"] == "reference"
    assert (
        report["sweeps"]["candidates"]["sizes"] == [5, 10] and len(report["sweeps"]["tokens"]["fused"]) == 2
    )
    assert report["sweeps"]["tokens"]["openvino_int8"] == [None, None]
    plot_sweeps(report, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
