"""A running server under a workload: one request after another, its counters before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from benchmarks.server_metrics import growth, read_counters
from serving.client import Client
from serving.contract import PROBE_REQUEST_ID
from serving.rank_request import RankRequest, wire_arrays
from serving.request_counters import CANDIDATES, ERRORS, PROFILES, REQUESTS


@dataclass(frozen=True)
class Served:
    """What a sequential client saw, and what the server counted meanwhile.

    Attributes:
        latencies_s: `[n]`, from the caller's values to the answer.
        logits: of each request, `[C, N]`.
        counters: growth of the server's counters: requests, profiles_encoded, candidates, errors.
    """

    latencies_s: NDArray[np.float64]
    logits: list[NDArray[np.float32]]
    counters: dict[str, int]


def serve_sequentially(
    client: Client,
    metrics_url: str,
    requests: Sequence[RankRequest],
    num_warm_up: int,
    progress: Callable[[int], object] = lambda number: None,
) -> Served:
    """Send requests one after another, as one caller would.

    Args:
        client: connected to the server.
        metrics_url: of the server's metrics page.
        requests: n of them.
        num_warm_up: how many of them are sent before, marked as probes: neither timed nor counted.
        progress: told the number of each request before it is sent.
    """
    for request in requests[:num_warm_up]:
        client.infer(wire_arrays(client.contract, [request]), request_id=PROBE_REQUEST_ID)
    before = read_counters(metrics_url)
    latencies, logits = np.empty(len(requests)), []
    for number, request in enumerate(requests):
        progress(number)
        begin = perf_counter()
        scores = client.rank(request)
        latencies[number] = perf_counter() - begin
        logits.append(scores.logits)
    after = read_counters(metrics_url)
    names = {"requests": REQUESTS, "profiles_encoded": PROFILES, "candidates": CANDIDATES, "errors": ERRORS}
    return Served(
        latencies, logits, {name: growth(before, after, counter) for name, counter in names.items()}
    )
