"""Latency of one ranking request: whole against cut, in this process and served by the real Triton Server.

    python -m benchmarks.request_path                                     a ranker with random weights, synthetic data
    python -m benchmarks.request_path --ranker RUN/ranker --data DATA     a trained one

Prints the ceiling, then a table; the last line is one JSON document. A variant whose logits are wrong is not timed,
and the command ends with status 1.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.ceiling import measure_machine
from benchmarks.environment import stamp
from benchmarks.held_out_requests import HeldOutConfig, HeldOutRequests, build_held_out_requests
from benchmarks.in_process import EagerRanker, ExportedRanker
from benchmarks.interleave import Timings, Variant, spread_blocks, time_blocks, verify
from benchmarks.open_loop import arrivals, run_open_loop
from benchmarks.percentiles import ratio_of_medians, summarise
from benchmarks.ranking_calls import rank_request
from benchmarks.report import ceiling_lines, environment_lines, latency_table
from benchmarks.request_cost import split_cost, unsplit_cost
from benchmarks.stations import Stations
from benchmarks.subject import Subject, random_subject, trained_subject
from foundation.errors import DataError, run_command
from foundation.library_notices import library_notices_off
from serving.client import Client
from serving.contract import MODEL
from serving.model_folder import VERSION, check_files
from serving.parity import TOLERANCE
from serving.probe import SERVED_TOLERANCE
from serving.server import launch
from serving.threads import available_cores

NUM_SENDERS = 4
REFERENCE = "unsplit"


@dataclass(frozen=True)
class RequestPathConfig:
    """Times a ranking request in all ways that this project can compute it.

    Attributes:
        ranker: folder written by ranker.cotrain; without it a ranker with seeded random weights is made.
        data: the dataset folder that the ranker was trained on.
        repository: model repository of that ranker; without it one is exported, and removed at the end.
        requests: timed per variant, in `blocks`; the unsplit graph takes one request of each block.
        candidates: of each request.
        history: events of each request; 0 for what each profile has.
        blocks: rounds of the variants' rotation.
        chunk: candidates that the unsplit graph takes at a time.
        verify: requests on which parity is checked before anything is timed.
        threads: of this process and of the server's model; 0 for all available cores.
        serve: also measure over gRPC.
        rate: requests per second of the open loop; 0 leaves it out.
        seed: of the workload.
        json: print the JSON document alone.
    """

    ranker: Path | None = None
    data: Path | None = None
    repository: Path | None = None
    requests: int = 200
    candidates: int = 500
    history: int = 200
    blocks: int = 10
    chunk: int = 100
    verify: int = 3
    threads: int = 0
    serve: bool = True
    rate: float = 20.0
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("blocks", "verify", "chunk"):
            if getattr(self, name) < 1:
                raise DataError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("threads", "rate", "history"):
            if getattr(self, name) < 0:
                raise DataError(f"--{name} is {getattr(self, name)}; it must be at least 0")
        if self.requests < max(self.blocks, self.verify):
            raise DataError(f"--requests is {self.requests}; it must be at least --blocks and --verify")
        if (self.ranker is None) != (self.data is None):
            raise DataError("--ranker and --data go together: the ranker, and the dataset it was trained on")
        if self.repository is not None and self.ranker is None:
            raise DataError("--repository needs --ranker: the ranker that the repository was exported from")


def measure(config: RequestPathConfig, say: Stations) -> dict[str, Any]:
    """Everything the command reports, as the JSON document."""
    torch.set_num_threads(config.threads or available_cores())
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marquee-request-path-")))
        subject = _subject(config, workspace, say)
        repository = config.repository or _export(subject, workspace, say)
        _check_origin(repository / MODEL / VERSION, subject)
        workload = build_held_out_requests(
            subject.dataset,
            subject.loaded.features.config.window,
            HeldOutConfig(config.requests, config.candidates, config.history or None, config.seed),
        )
        eager = EagerRanker(subject.loaded, workload, config.chunk)
        environment, ceiling = stamp(), _ceiling(eager)
        say.say("\n".join((*environment_lines(environment), *ceiling_lines(ceiling))))
        exported = ExportedRanker(repository / MODEL / VERSION, workload)
        variants = [
            Variant(REFERENCE, eager.unsplit, TOLERANCE, requests_per_block=1),
            Variant("split", eager.split, TOLERANCE),
            Variant("exported", exported.exported, TOLERANCE),
        ]
        url = stack.enter_context(_server(config, repository, say)) if config.serve else None
        if url is not None:
            variants.append(Variant("served", stack.enter_context(_served(url, workload)), SERVED_TOLERANCE))
        sizes = [rows.stop - rows.start for rows in map(workload.history_rows, range(len(workload)))]
        timings = _time(config, variants, spread_blocks(sizes, config.blocks), say)
        report = {
            "benchmark": "request_path",
            "weights": subject.weights,
            "settings": _plain(config),
            "environment": environment,
            "ceiling": ceiling,
            **figures(timings),
        }
        if url is not None and config.rate and "served" not in timings.refused:
            report["open_loop"] = _open_loop(config, url, workload, say)
    return report


def _subject(config: RequestPathConfig, workspace: Path, say: Stations) -> Subject:
    if config.ranker is not None and config.data is not None:
        return trained_subject(config.ranker, config.data)
    say.say("no --ranker: making one with seeded random weights on the synthetic world")
    return random_subject(workspace)


def _export(subject: Subject, workspace: Path, say: Stations) -> Path:
    say.run("export", "serving.export", "--ranker", subject.folder, "--out", workspace / "repository")
    return workspace / "repository"


def _ceiling(eager: EagerRanker) -> dict[str, Any]:
    machine = measure_machine()
    return {
        "machine": machine.to_json(),
        REFERENCE: unsplit_cost(eager, 0).to_json(machine),
        "split": split_cost(eager, 0).to_json(machine),
    }


def _check_origin(folder: Path, subject: Subject) -> None:
    origin = check_files(folder)["ranker"]
    if origin != subject.loaded.manifest.version:
        raise DataError(
            f"{folder}: was exported from ranker {origin}, but {subject.folder} is {subject.loaded.manifest.version}; "
            "export it anew"
        )


@contextmanager
def _server(config: RequestPathConfig, repository: Path, say: Stations) -> Iterator[str]:
    say.say("starting Triton Server")
    with launch(repository, threads=config.threads) as server:
        yield server.grpc_url


@contextmanager
def _served(url: str, workload: HeldOutRequests) -> Iterator[Any]:
    """A variant's `run`: one call over gRPC from a caller's values to logits."""
    requests = [rank_request(workload, number) for number in range(len(workload))]
    with Client(url) as client:
        yield lambda number: client.rank(requests[number]).logits


def _time(
    config: RequestPathConfig, variants: list[Variant], blocks: list[list[int]], say: Stations
) -> Timings:
    say.say(f"checking parity on {config.verify} requests")
    timings = verify(variants[0], variants[1:], range(config.verify))
    for name, reason in timings.refused.items():
        say.say(f"{name}: {reason}")
    time_blocks(variants, blocks, timings, lambda block: say.say(f"block {block + 1}/{config.blocks}"))
    return timings


def figures(timings: Timings) -> dict[str, Any]:
    """The measured part of the report; a refused variant has its parity in it and no speed."""
    return {
        "parity": timings.parity,
        "refused": timings.refused,
        "latency": {name: timings.latency(name).to_json() for name in timings.blocks},
        "slower_than_split": {
            # On the same requests: the whole graph takes the first of each block.
            name: ratio_of_medians(
                blocks,
                [split[: len(block)] for split, block in zip(timings.blocks["split"], blocks, strict=True)],
            ).to_json()
            for name, blocks in timings.blocks.items()
            if name != "split" and "split" in timings.blocks
        },
    }


def _open_loop(
    config: RequestPathConfig, url: str, workload: HeldOutRequests, say: Stations
) -> dict[str, Any]:
    """Latencies from the scheduled send, at a rate that does not wait for answers."""
    say.say(f"open loop: {len(workload)} requests at {config.rate:g} per second")
    with ExitStack() as stack:
        senders = [stack.enter_context(_served(url, workload)) for _ in range(NUM_SENDERS)]
        for send in senders:
            send(0)
        result = run_open_loop(senders, arrivals(config.rate, len(workload), config.seed))
    return {
        "rate_per_s": config.rate,
        "senders": NUM_SENDERS,
        "answered_per_s": round(len(workload) / result.elapsed_s, 2),
        "from_schedule": summarise(result.from_schedule_s).to_json(),
        "from_send": summarise(result.from_send_s).to_json(),
    }


def _plain(config: RequestPathConfig) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def main() -> None:
    """The command."""
    config = tyro.cli(RequestPathConfig, prog="python -m benchmarks.request_path")
    with library_notices_off(), ExitStack() as stack:
        out = stack.enter_context(Path(os.devnull).open("w")) if config.json else sys.stdout
        say = Stations(out)
        report = measure(config, say)
        say.say(latency_table(report))
    print(json.dumps(report))
    if report["refused"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
