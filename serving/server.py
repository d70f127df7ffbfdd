"""The real Triton Server on a model repository: started, asked for a right answer, stopped cleanly.

with launch(repository) as server, Client(server.grpc_url) as client:
    client.rank(request)
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving.client import Client, RankError
from serving.contract import MODEL, PROBE_REQUEST_ID
from serving.model_folder import SAMPLE_ANSWER, SAMPLE_REQUEST, VERSION
from serving.rank_request import RankRequest, wire_arrays
from serving.server_process import LOOPBACK, POLL_S, Ports, ServerProcess
from serving.threads import available_cores

SERVED_TOLERANCE = 1e-4
"""Of max|difference| / max(1, max|logit|) between a served answer and the unsplit ranker's."""
NUM_PORT_DRAWS = 3
"""A free port may be taken before the server binds it: so often new ones are drawn."""


class LaunchError(RuntimeError):
    """The server did not start, or does not answer as it should."""


@dataclass(frozen=True)
class ServerConfig:
    """How to run the server; it listens on the loopback interface only.

    Attributes:
        repository: written by serving.export.
        tritonserver: an executable of your own; by default the one of the nvidia-pytriton wheel.
        ports: of the endpoints.
        threads: threads that the served model computes with; 0 for all available cores.
        start_timeout_s: seconds to wait for the first right answer.
        grace_s: seconds that the server may take to stop before it is killed.
    """

    repository: Path
    tritonserver: Path | None = None
    ports: Ports = field(default_factory=Ports)
    threads: int = 0
    start_timeout_s: float = 120.0
    grace_s: float = 6.0


class Server:
    """A running server that has answered the sample request rightly; `launch` makes one and stops it.

    Args:
        config: how to run it.
        cancelled: set from elsewhere to give up waiting for the server to start.

    Attributes:
        ports: of the endpoints.

    Raises:
        LaunchError: it does not start, gives a wrong answer, or was cancelled.
        ServerFilesError: Triton Server is not installed.
    """

    def __init__(self, config: ServerConfig, cancelled: threading.Event | None = None) -> None:
        self.config = config
        self._cancelled = cancelled or threading.Event()
        folder = config.repository / MODEL / VERSION
        try:
            sample = json.loads((folder / SAMPLE_REQUEST).read_text(encoding="utf-8"))
            answer = json.loads((folder / SAMPLE_ANSWER).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LaunchError(f"{error.filename}: not found; serving.export writes it") from None
        self._sample = RankRequest.from_json(sample)
        self._logits = np.array(answer["logits"], dtype=np.float32)
        self._start_with_free_ports()

    @property
    def grpc_url(self) -> str:
        """Host and port of the gRPC endpoint."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Of the HTTP endpoint."""
        return f"http://{LOOPBACK}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Of the metrics page."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Of the server process."""
        return self._process.pid

    def problem(self, timeout_s: float = 10.0) -> str | None:
        """What is wrong with the server by a real inference; None if it answers rightly.

        Ready endpoints are no proof: when the model's Python process has died they still say ready. The probe is
        left out of the model's counters.
        """
        if not self._process.is_running():
            return "the server process has ended"
        try:
            with Client(self.grpc_url, timeout_s=timeout_s) as client:
                arrays = wire_arrays(client.contract, [self._sample])
                logits, _ = client.infer(arrays, request_id=PROBE_REQUEST_ID)
        except RankError as error:
            return f"{error.status}: {error}"
        difference = np.abs(logits - self._logits).max() / max(1.0, np.abs(self._logits).max())
        if not difference <= SERVED_TOLERANCE:
            return f"a wrong answer: it differs by {difference:.3g}, the limit is {SERVED_TOLERANCE:g}"
        return None

    def healthy(self) -> bool:
        """Whether a real inference gives the right answer now."""
        return self.problem() is None

    def restart(self) -> None:
        """Stop the server and start it again on the same ports: the cure for a dead Python process.

        Raises:
            LaunchError: it does not come back.
        """
        self._process.stop()
        self._start()

    def stop(self) -> None:
        """Stop the server and its Python processes, and remove its temporary files. Safe to repeat."""
        self._process.stop()

    def _start_with_free_ports(self) -> None:
        asked = self.config.ports
        for draw in range(1, NUM_PORT_DRAWS + 1):
            self.ports = asked.chosen()
            try:
                self._start()
            except _PortTaken as error:
                if draw == NUM_PORT_DRAWS or self.ports == asked:
                    raise LaunchError(str(error)) from None
            else:
                break

    def _start(self) -> None:
        """Start on `self.ports` and wait for the right answer; a server that gives none is stopped."""
        config = self.config
        threads = config.threads or available_cores()
        self._process = ServerProcess(
            config.repository, self.ports, config.tritonserver, threads, config.grace_s
        )
        try:
            self._wait_until_right(time.monotonic() + config.start_timeout_s)
        except BaseException:
            self._process.stop()
            raise

    def _wait_until_right(self, deadline: float) -> None:
        while not _accepts_connections(self.ports.grpc):
            if not self._process.is_running():
                tail = self._process.log_tail()
                kind = _PortTaken if "already in use" in tail else LaunchError
                raise kind(f"the server ended while it started; its last lines:\n{tail}")
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"no answer within start_timeout_s = {self.config.start_timeout_s}; the server's last"
                    f" lines:\n{self._process.log_tail()}"
                )
            if self._cancelled.wait(POLL_S):
                raise LaunchError("cancelled while the server started")
        # The port opens once all models are loaded, so now the first answer counts.
        problem = self.problem(timeout_s=max(1.0, deadline - time.monotonic()))
        if problem is not None:
            raise LaunchError(f"the server gave {problem}; its last lines:\n{self._process.log_tail()}")


class _PortTaken(LaunchError):
    """Another process was faster to bind a port."""


@contextlib.contextmanager
def launch(repository: Path, **options: object) -> Iterator[Server]:
    """A running server on `repository`; it is stopped when the block ends.

    Args:
        repository: written by serving.export.
        options: further fields of `ServerConfig`.

    Raises:
        LaunchError: it does not start, or gives a wrong answer.
        ServerFilesError: Triton Server is not installed.
    """
    server = Server(ServerConfig(repository, **options))  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.stop()


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
