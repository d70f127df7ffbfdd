"""Serve a model repository with the real Triton Server until a signal comes.

python -m serving.launch --repository RUN/repository --grpc-port 8001
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from foundation.atomic import atomic_file
from foundation.errors import DataError, run_command
from serving.probe import TIMED_OUT
from serving.server import Server, ServerConfig
from serving.server_files import LaunchError
from serving.server_process import Ports

logger = logging.getLogger("serving.launch")
NUM_FAILED_CHECKS = 2
"""So many health checks must fail in a row before the server is started anew: one may time out under load."""


@dataclass(frozen=True)
class LaunchConfig:
    """Serve a model repository on the loopback interface until SIGINT or SIGTERM.

    Attributes:
        repository: written by serving.export.
        tritonserver: an executable of your own; by default the one of the nvidia-pytriton wheel.
        grpc_port: 0 for any free port.
        http_port: 0 for any free port.
        metrics_port: 0 for any free port.
        threads: threads that the served model computes with; 0 for all available cores.
        ready_file: file that holds the printed JSON line while the server answers.
        check_every_s: seconds between real inferences that find out whether the server must be started anew.
        start_timeout_s: seconds to wait for the first right answer.
        grace_s: seconds that the server may take to stop before it is killed.
        log_file: file that the server's whole output is appended to, also when it is started anew.
    """

    repository: Path
    tritonserver: Path | None = None
    grpc_port: int = 0
    http_port: int = 0
    metrics_port: int = 0
    threads: int = 0
    ready_file: Path | None = None
    check_every_s: float = 5.0
    start_timeout_s: float = ServerConfig.start_timeout_s
    grace_s: float = ServerConfig.grace_s
    log_file: Path | None = None

    @property
    def server(self) -> ServerConfig:
        """The part that the server is made from."""
        return ServerConfig(
            repository=self.repository,
            tritonserver=self.tritonserver,
            ports=Ports(self.grpc_port, self.http_port, self.metrics_port),
            threads=self.threads,
            start_timeout_s=self.start_timeout_s,
            grace_s=self.grace_s,
            log_file=self.log_file,
        )


def serve(config: LaunchConfig, stopping: threading.Event) -> None:
    """Start, print one JSON line with the endpoints, and watch the server until `stopping` is set.

    Raises:
        DataError: a setting is wrong.
        LaunchError: the server does not start, or does not come back after it died.
    """
    if not config.check_every_s > 0:
        raise DataError(f"check_every_s is {config.check_every_s}; it must be above 0 seconds")
    server = Server(config.server, stopping)
    try:
        line = json.dumps(
            {
                "grpc": server.grpc_url,
                "http": server.http_url,
                "metrics": server.metrics_url,
                "pid": server.pid,
            }
        )
        with _ready_file(config.ready_file, line):
            print(line, flush=True)
            watch(server, stopping, config.check_every_s)
    finally:
        server.stop()


@contextlib.contextmanager
def _ready_file(path: Path | None, line: str) -> Iterator[None]:
    """Keeps `line` in a file while the block runs."""
    if path is None:
        yield
        return
    with atomic_file(path) as partial:
        partial.write_text(line + "\n", encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def watch(server: Server, stopping: threading.Event, check_every_s: float) -> None:
    """Start the server anew when real inferences keep failing.

    A server that was too slow for the check, but answered others since the check before, is busy and not dead.
    """
    num_failed, handled = 0, server.num_handled()
    while not stopping.wait(check_every_s):
        problem = server.problem()
        before, handled = handled, server.num_handled()
        if problem is None or (problem.startswith(TIMED_OUT) and _has_moved(before, handled)):
            num_failed = 0
            continue
        num_failed += 1
        if num_failed == NUM_FAILED_CHECKS:
            logger.warning("starting the server anew: %s", problem)
            server.restart()
            num_failed, handled = 0, server.num_handled()


def _has_moved(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before


def main(config: LaunchConfig) -> int:
    """Serve until a signal; returns the exit status."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        serve(config, stopping)
    except LaunchError as error:
        if not stopping.is_set():
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    run_command(lambda: sys.exit(main(tyro.cli(LaunchConfig))))
