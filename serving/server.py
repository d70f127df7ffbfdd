"""The real Triton Server on a model repository: started, asked for a right answer, stopped cleanly.

with launch(repository) as server, Client(server.grpc_url) as client:
    client.rank(request)
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from serving.probe import Probe
from serving.request_counters import num_handled
from serving.server_files import LaunchError
from serving.server_process import LOOPBACK, POLL_S, Ports, PortTakenError, ServerConfig, ServerProcess

logger = logging.getLogger("serving.server")
NUM_PORT_DRAWS = 3
"""A free port may be taken before the server binds it: so often ports are drawn."""
PROBE_TIMEOUT_S = 10.0


class Server:
    """A running server that has answered the sample request rightly; `launch` makes one and stops it.

    Args:
        config: how to run it.
        cancelled: set from elsewhere to give up waiting for the server to start.

    Attributes:
        ports: of the endpoints.

    Raises:
        LaunchError: it does not start, gives a wrong answer, or was cancelled.
    """

    def __init__(self, config: ServerConfig, cancelled: threading.Event | None = None) -> None:
        self.config = config
        self._cancelled = cancelled or threading.Event()
        self._probe = Probe(config.repository)
        for draw in range(1, NUM_PORT_DRAWS + 1):
            self.ports = config.ports.chosen()
            try:
                self._process = self._started()
                break
            except PortTakenError:
                if draw == NUM_PORT_DRAWS:
                    raise

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

    def problem(self) -> str | None:
        """What is wrong with the server by a real inference; None if it answers rightly."""
        if not self._process.is_running():
            return "the server process has ended"
        return self._probe.problem(self.grpc_url, PROBE_TIMEOUT_S)

    def num_handled(self) -> int | None:
        """How much the model has answered since it started, probes left out; None if the server doesn't say."""
        try:
            with urlopen(self.metrics_url, timeout=PROBE_TIMEOUT_S) as page:
                return num_handled(page.read().decode())
        except (OSError, HTTPException):
            return None

    def healthy(self) -> bool:
        """Whether a real inference gives the right answer now."""
        return self.problem() is None

    def restart(self) -> None:
        """Stop the server and start it again on the same ports: the cure for a dead Python process.

        What the server complained of last is logged, since its output goes with it.

        Raises:
            LaunchError: it does not come back.
        """
        logger.warning("the server that is stopped said last:\n%s", self._process.complaints())
        self._process.stop()
        self._process = self._started()

    def stop(self) -> None:
        """Stop the server and its Python processes, and remove its temporary files. Safe to repeat."""
        self._process.stop()

    def _started(self) -> ServerProcess:
        """A process on `self.ports` that has given the right answer; one that does not is stopped."""
        process = ServerProcess(self.config, self.ports)
        try:
            self._wait_until_right(process)
        except BaseException:
            process.stop()
            raise
        return process

    def _wait_until_right(self, process: ServerProcess) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        # The metrics endpoint is the last to open, after all models are loaded.
        while not _accepts_connections(self.ports.metrics):
            process.raise_if_ended()
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"no answer within start_timeout_s = {self.config.start_timeout_s}; the server"
                    f" said:\n{process.complaints()}"
                )
            if self._cancelled.wait(POLL_S):
                raise LaunchError("cancelled while the server started")
        problem = self._probe.problem(self.grpc_url, max(1.0, deadline - time.monotonic()))
        if problem is not None:
            raise LaunchError(f"the server gave {problem}; it said:\n{process.complaints()}")


@contextlib.contextmanager
def launch(
    repository: Path, *, tritonserver: Path | None = None, ports: Ports | None = None, threads: int = 0
) -> Iterator[Server]:
    """A running server on `repository`; it is stopped when the block ends. See `ServerConfig`.

    Raises:
        LaunchError: it does not start, or gives a wrong answer.
    """
    server = Server(ServerConfig(repository, tritonserver, ports or Ports(), threads))
    try:
        yield server
    finally:
        server.stop()


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
