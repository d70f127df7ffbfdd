"""Ranking one request: the fused programs against what people would pick instead, on the same weights and machine.

    python -m benchmarks.latency --workload reference --json
    python -m benchmarks.latency --workload crossing --plot latency.png

Prints the ceiling, then a table; the last line is one JSON document. Every variant has a process of its own, and is
timed while the others are stopped. A variant whose outputs are wrong, or whose process fails, is not timed, and the
command ends with status 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import tyro

from benchmarks.baselines.process import Worker, WorkerLost
from benchmarks.baselines.protocol import Case
from benchmarks.baselines.variants import MODULES
from benchmarks.ceiling import measure_machine
from benchmarks.compared import FUSED, REFERENCE, VARIANTS, Entry, cases_of, rounds
from benchmarks.comparison import Comparison, Patience
from benchmarks.comparison_report import ceiling_lines, document, latency_of, table
from benchmarks.environment import stamp
from benchmarks.floor import Floor
from benchmarks.least_products import least_products
from benchmarks.memory_growth import memory_growth
from benchmarks.percentiles import ratio_of_medians
from benchmarks.report import environment_lines
from benchmarks.staleness_plot import check_plot_path
from benchmarks.stations import Stations
from benchmarks.sweep_plot import plot_sweeps
from benchmarks.workload import BATCH, CANDIDATE_SWEEP, HISTORY_SWEEP, WORKLOADS, Workload
from foundation.errors import DataError, run_command
from foundation.library_notices import library_notices_off
from serving.threads import SPIN_COUNT, SPIN_VARIABLE, available_cores

MEMORY_CANDIDATES, MEMORY_TOKENS, MEMORY_PROCESSES = 2_000, 1_024, 3
MEMORY_RIVAL = "onnxruntime"
SWEEP_BLOCKS, SWEEP_RUNS = 3, 5
LIBGOMP_SPIN_COUNT = "300000"
"""libgomp's own default, for peers: they wait for work as they would without us; ours as the server has it."""

Start = Callable[[str], Worker]
"""A new process of the named variant."""


@dataclass(frozen=True)
class LatencyConfig:
    """Times one ranking request in every way that there is to compute it, beside the least that it could take.

    Attributes:
        workload: reference (256 tokens, 500 candidates), long (1,024 and 1,000), or crossing (reference, with
            candidates crossing the decoder).
        variants: which to time; eager is always among them, for all others are held to it.
        blocks: rounds of the variants' rotation.
        runs: of each variant in each block, after three that don't count; a variant that takes more than a second has
            one, in three of the blocks.
        threads: of each variant; 0 for two, or what there is.
        plot: also time 50 to 2,000 candidates and 64 to 1,024 tokens, with fewer runs, and draw both here; a PNG.
        json: print the JSON document alone; progress goes to stderr in any case.
    """

    workload: Literal["reference", "long", "crossing"] = "reference"
    variants: tuple[str, ...] = tuple(name for name in VARIANTS if name in MODULES)
    blocks: int = 12
    runs: int = 20
    threads: int = 0
    plot: Path | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name, least in (("blocks", 1), ("runs", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise DataError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        if unknown := [name for name in self.variants if name not in VARIANTS]:
            raise DataError(f"--variants: there is no {unknown[0]!r}, only {', '.join(VARIANTS)}")
        if self.plot is not None:
            check_plot_path(self.plot)

    @property
    def all_variants(self) -> tuple[str, ...]:
        """Those that take part, in the order of `VARIANTS`."""
        return tuple(name for name in VARIANTS if name in (*self.variants, REFERENCE))

    @property
    def all_threads(self) -> int:
        """Of each variant."""
        return self.threads or min(2, available_cores())


def measure(config: LatencyConfig, start: Start, folder: Path, say: Stations) -> dict[str, Any]:
    """Everything the command reports, as the JSON document.

    Args:
        config: of the command.
        start: starts a variant's process.
        folder: for outputs that are compared.
        say: shown on the way: the ceiling, to people.
    """
    torch.set_num_threads(config.all_threads)
    environment, floor = stamp(), _floor(config.workload)
    say.say("\n".join((*environment_lines(environment), *ceiling_lines(floor.to_json()))))
    cases, patience = cases_of(config.workload), Patience()
    groups = rounds(cases, config.all_variants)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(closing(start(name))) for name in config.all_variants}
        comparison = Comparison(workers, folder, _progress, patience)
        tuned = [
            entry for group in groups for entry in group if entry.case in (cases.whole, cases.candidates)
        ]
        _load(comparison, [tuned])
        _progress("each chooses its settings")
        comparison.tune(tuned)
        _load(comparison, groups)
        _time(comparison, groups, config.blocks, config.runs, floor.measure)
        report = {
            "benchmark": "latency",
            "workload": config.workload,
            "settings": _plain(config),
            "environment": environment,
            **document(comparison.found, cases, floor),
        }
        if config.plot is not None:
            report["sweeps"] = _sweeps(comparison, config)
        _add_memory(report, config, start, patience)
    return report


def _floor(name: str) -> Floor:
    # A catalogue of any size has the same products.
    config = replace(WORKLOADS[name], num_requests=BATCH)
    products = least_products(Workload(config).ranker, config.tokens, config.candidates)
    floor = Floor(products, measure_machine())
    floor.measure()
    return floor


def _load(comparison: Comparison, groups: list[list[Entry]]) -> None:
    entries = [entry for group in groups for entry in group]
    _progress(f"loading {len(entries)} graphs, compilers included")
    comparison.load(entries)


def _time(
    comparison: Comparison,
    groups: list[list[Entry]],
    blocks: int,
    runs: int,
    between: Callable[[], object] = lambda: None,
) -> None:
    _progress("checking outputs")
    comparison.check([entry for group in groups for entry in group])
    comparison.time(groups, blocks, runs, between)


def _sweeps(comparison: Comparison, config: LatencyConfig) -> dict[str, Any]:
    """Medians in ms over candidates and over tokens, None where a variant could not be timed."""
    whole = Case(config.workload)
    sweeps = {
        "candidates": {size: replace(whole, candidates=size) for size in CANDIDATE_SWEEP},
        "tokens": {size: replace(whole, tokens=size) for size in HISTORY_SWEEP},
    }
    groups = [
        [Entry(name, case) for name in config.all_variants]
        for cases in sweeps.values()
        for case in cases.values()
    ]
    _load(comparison, groups)  # with the settings that were the fastest before
    _time(comparison, groups, SWEEP_BLOCKS, SWEEP_RUNS)
    return {
        sweep: {
            "sizes": list(cases),
            **{
                name: [
                    None
                    if (latency := latency_of(comparison.found, Entry(name, case))) is None
                    else latency.p50_ms
                    for case in cases.values()
                ]
                for name in config.all_variants
            },
        }
        for sweep, cases in sweeps.items()
    }


def _add_memory(report: dict[str, Any], config: LatencyConfig, start: Start, patience: Patience) -> None:
    """What ours and its rival grow by, each in fresh processes, taking turns."""
    names = (FUSED, MEMORY_RIVAL)
    if not set(names) <= set(config.all_variants):
        return
    case = Case(config.workload, candidates=MEMORY_CANDIDATES, tokens=MEMORY_TOKENS)
    grown: dict[str, list[int]] = {name: [] for name in names}
    for number in range(MEMORY_PROCESSES):
        _progress(f"memory, {number + 1}/{MEMORY_PROCESSES}")
        for name in names:
            try:
                grown[name].append(memory_growth(lambda name=name: start(name), case, patience))
            except WorkerLost as lost:
                report["refused"][f"memory of {name}"] = str(lost)
                _progress(str(lost))
                return
    report["memory_bytes"] = grown
    ratio = ratio_of_medians([[each] for each in grown[FUSED]], [[each] for each in grown[MEMORY_RIVAL]])
    report["ratios"][f"memory_vs_{MEMORY_RIVAL}"] = round(ratio.value, 3)
    report["ratios_ci95"][f"memory_vs_{MEMORY_RIVAL}"] = ratio.to_json()["ci95"]


def _starter(config: LatencyConfig, folder: Path) -> Start:
    """Starts `benchmarks.baselines.worker`, whose log and scratch folder are in `folder`."""
    threads = str(config.all_threads)

    def start(name: str) -> Worker:
        scratch = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
        command = [sys.executable, "-m", "benchmarks.baselines.worker"]
        command += ["--variant", name, "--threads", threads, "--folder", str(scratch)]
        spins = str(SPIN_COUNT) if name.startswith("fused") else LIBGOMP_SPIN_COUNT
        environment = {**os.environ, "OMP_NUM_THREADS": threads, SPIN_VARIABLE: spins}
        return Worker(name, command, scratch / "log.txt", environment)

    return start


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(config: LatencyConfig) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """The command."""
    config = tyro.cli(LatencyConfig, prog="python -m benchmarks.latency")
    # An exit from here on ends all processes on its way out, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminated)
    with library_notices_off(), ExitStack() as stack:
        out = stack.enter_context(Path(os.devnull).open("w")) if config.json else sys.stdout
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marquee-latency-")))
        say = Stations(out)
        report = measure(config, _starter(config, folder), folder, say)
        say.say(table(report))
        if config.plot is not None:
            plot_sweeps(report, config.plot)
    print(json.dumps(report))
    if report["refused"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
