"""Replay held-out requests against a running server: `python -m benchmarks.replay --url HOST:PORT --metrics-url URL …`.

Prints one profile's history and its best titles by name; the last line is one JSON document.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.held_out_requests import HeldOutConfig, HeldOutRequests, build_held_out_requests
from benchmarks.in_process import EagerRanker
from benchmarks.percentiles import summarise
from benchmarks.ranking_calls import rank_request
from benchmarks.served import Served, serve_sequentially
from foundation.dataset import load_dataset
from foundation.errors import DataError, run_command
from foundation.library_notices import library_notices_off
from foundation.raw_values import NO_NUMBER
from ranker.artifact import load_ranker
from serving.client import Client
from serving.parity import difference
from serving.probe import SERVED_TOLERANCE

HISTORY_SHOWN = 10


@dataclass(frozen=True)
class ReplayConfig:
    """Sends requests of held-out profiles to a server and compares its logits with the ranker's own.

    Attributes:
        ranker: folder written by ranker.cotrain, from which the served repository was exported.
        data: the dataset folder that the ranker was trained on.
        url: host:port of the server's gRPC endpoint.
        metrics_url: of the server's metrics page.
        requests: how many, each of a different profile as long as there are enough.
        candidates: of each request.
        warm_up: requests sent before, neither timed nor counted.
        top: how many titles to print.
        seed: of the workload.
    """

    ranker: Path
    data: Path
    url: str
    metrics_url: str
    requests: int = 200
    candidates: int = 500
    warm_up: int = 20
    top: int = 10
    seed: int = 0


def replay(config: ReplayConfig) -> dict[str, Any]:
    """Send the requests, check the answers, and print what one profile gets.

    Returns:
        requests, profiles_encoded, candidates, errors (the server's counters), profiles, parity, p50_ms, p95_ms,
        p99_ms, max_ms.

    Raises:
        DataError: the ranker or the data are wrong, or a served answer differs from the ranker's.
    """
    loaded, dataset = load_ranker(config.ranker), load_dataset(config.data)
    workload = build_held_out_requests(
        dataset,
        loaded.features.config.window,
        HeldOutConfig(config.requests, config.candidates, seed=config.seed),
    )
    requests = [rank_request(workload, number) for number in range(len(workload))]
    with Client(config.url) as client, _bar("ranking", len(requests)) as bar:
        served = serve_sequentially(
            client, config.metrics_url, requests, config.warm_up, lambda number: bar.update()
        )
        tasks = client.contract.tasks
    parity = _parity(EagerRanker(loaded, workload), served)
    print("\n".join(_one_profile(workload, served, tasks, config.top)), flush=True)
    latency = summarise(served.latencies_s).to_json()
    del latency["count"]
    num_profiles = len({workload.profile_id(number) for number in range(len(workload))})
    return {**served.counters, "profiles": num_profiles, "parity": parity, **latency}


def _parity(ranker: EagerRanker, served: Served) -> float:
    """Largest difference of the served logits from `Ranker.forward`; above the gate it is an error."""
    gaps = []
    with _bar("checking", len(served.logits)) as bar:
        for number, logits in enumerate(served.logits):
            gaps.append(
                difference(torch.from_numpy(ranker.reference(number)), torch.from_numpy(logits.copy()))
            )
            bar.update()
    worst = float(np.max(gaps))
    if not worst <= SERVED_TOLERANCE:
        raise DataError(
            f"served logits differ from the ranker's by {worst:.3g}, the limit is {SERVED_TOLERANCE:g}: "
            "was the repository exported from this ranker?"
        )
    return worst


def _one_profile(workload: HeldOutRequests, served: Served, tasks: tuple[str, ...], top: int) -> list[str]:
    """The first request for people: the newest events of its history, and the best titles for its first task."""
    dataset = workload.dataset
    titles = dict(zip(dataset.catalogue.item_id.tolist(), dataset.catalogue.titles, strict=True))
    rows = workload.history_rows(0)
    shown = range(max(rows.start, rows.stop - HISTORY_SHOWN), rows.stop)
    candidates, logits = workload.candidates(0), served.logits[0][:, 0]
    later = set(workload.next_items(0).tolist())
    lines = [
        "",
        f"{_who(workload)}: the last {len(shown)} of {rows.stop - rows.start} events sent",
        *(_event_line(workload, row, titles) for row in shown),
        "",
        f"its top {top} of {len(candidates)} candidates for {tasks[0]!r} (* = the profile did go on to it):",
    ]
    for place, index in enumerate(np.argsort(-logits, kind="stable")[:top].tolist(), start=1):
        item = int(candidates[index])
        score = 1 / (1 + np.exp(-float(logits[index])))
        lines.append(f"{place:4d}  {score:.3f} {'*' if item in later else ' '} {titles.get(item, str(item))}")
    return lines


def _who(workload: HeldOutRequests) -> str:
    """The first request's profile by its place in the data: of an id that was a string only the hash is left."""
    ids = workload.dataset.profile_ids
    place = int(np.flatnonzero(ids == workload.profile_id(0))[0]) + 1
    return f"held-out profile {place:,} of {len(ids):,}"


def _event_line(workload: HeldOutRequests, row: int, titles: dict[int, str]) -> str:
    """Day, title and the numbers of one event; categorical values are hashes, which tell people nothing."""
    dataset = workload.dataset
    events = dataset.events
    day = datetime.fromtimestamp(int(events.timestamp[row]), UTC).strftime("%Y-%m-%d")
    numbers = [
        f"{facet.name} {events.facets[facet.name][row]:g}"
        for facet in dataset.schema.facets_of("what")
        if facet.is_number and events.facets[facet.name][row] != NO_NUMBER
    ]
    item = int(events.item_id[row])
    return f"  {day}  {titles.get(item, str(item))}" + (f"  ({', '.join(numbers)})" if numbers else "")


def _bar(what: str, total: int) -> tqdm:
    return tqdm(total=total, desc=what, unit="request", disable=not sys.stderr.isatty())


def main() -> None:
    """The command."""
    config = tyro.cli(ReplayConfig, prog="python -m benchmarks.replay")
    with library_notices_off():
        document = replay(config)
    print(json.dumps(document))


if __name__ == "__main__":
    run_command(main)
