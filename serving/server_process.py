"""The Triton Server process: its command line, its start, and its end without leftovers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from foundation.errors import DataError
from serving.server_files import LaunchError, ServerFiles, files_of_program, files_of_wheel
from serving.server_guard import Guard, remove_leftovers
from serving.threads import available_cores

LOOPBACK = "127.0.0.1"
POLL_S = 0.05
_NO_COMPLAINT = re.compile(r"[IW]\d{4} |[|+]")


@dataclass(frozen=True)
class Ports:
    """Ports of the three endpoints; 0 for any free one."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0

    def __post_init__(self) -> None:
        for name, port in asdict(self).items():
            if not 0 <= port < 1 << 16:
                raise DataError(f"{name} port is {port}; it must be from 0, for any free one, to 65535")

    def chosen(self) -> Ports:
        """The same, with a free port for every 0.

        Raises:
            PortTakenError: a port that was asked for is not free.
        """
        with contextlib.ExitStack() as stack:
            # All are held before any is let go, so that they differ.
            return Ports(*(_free_port(stack, name, port) for name, port in asdict(self).items()))


@dataclass(frozen=True)
class ServerConfig:
    """How to run the server; it listens on the loopback interface only.

    Attributes:
        repository: written by serving.export.
        tritonserver: an executable of your own; None for the one of the nvidia-pytriton wheel.
        ports: of the endpoints.
        threads: threads that the served model computes with; 0 for all available cores.
        start_timeout_s: seconds to wait for the first right answer.
        grace_s: seconds that the server may take to stop before it is killed.
        log_file: file that all of the server's output is appended to; None keeps it while the server runs.
    """

    repository: Path
    tritonserver: Path | None = None
    ports: Ports = field(default_factory=Ports)
    threads: int = 0
    start_timeout_s: float = 120.0
    grace_s: float = 6.0
    log_file: Path | None = None

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise DataError(f"threads is {self.threads}; it must be above 0, or 0 for all available cores")
        if not self.start_timeout_s > 0:
            raise DataError(f"start_timeout_s is {self.start_timeout_s}; it must be above 0 seconds")
        if not self.grace_s >= 0:
            raise DataError(f"grace_s is {self.grace_s}; it must be at least 0 seconds")


class PortTakenError(LaunchError):
    """A port is in use by another process."""


def _free_port(stack: contextlib.ExitStack, name: str, port: int) -> int:
    held = stack.enter_context(socket.socket())
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError as error:
        raise PortTakenError(f"{name} port {port} on {LOOPBACK} can't be had: {error.strerror}") from None
    return held.getsockname()[1]


class ServerProcess:
    """A started server in a process group of its own, which holds its Python processes too.

    Args:
        config: how to run it.
        ports: all chosen; those of `config` may be 0.

    Attributes:
        log: the server's output; `stop` removes it unless it was asked for.

    Raises:
        LaunchError: a part of the server is not there, or `log_file` can't be written.
    """

    def __init__(self, config: ServerConfig, ports: Ports) -> None:
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="marquee-server-"))
        self._shared_memory = f"marquee_{uuid.uuid4().hex[:12]}_"
        self.log = config.log_file or self._folder / "server.log"
        with contextlib.ExitStack() as undo:
            undo.callback(remove_leftovers, self._folder, self._shared_memory)
            program = config.tritonserver
            files = files_of_program(program) if program else files_of_wheel(self._folder)
            self._process = self._spawn(files, ports)
            undo.callback(os.killpg, self._process.pid, signal.SIGKILL)
            self._guard = Guard(self._process.pid, self._folder, self._shared_memory)
            undo.pop_all()

    @property
    def pid(self) -> int:
        """Of the server; its process group has the same number."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the server process is there."""
        return not self._has_exited()

    def complaints(self, num_lines: int = 20) -> str:
        """The last lines of the server's output that are neither information, warnings nor tables."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", errors="replace").splitlines()
        kept = [line for line in lines if line.strip() and not _NO_COMPLAINT.match(line)]
        return "\n".join(kept[-num_lines:])

    def raise_if_ended(self) -> None:
        """Say why a server that is meant to be starting has ended.

        Raises:
            PortTakenError: another process was faster to take one of its ports.
            LaunchError: with what the server said.
        """
        if not self.is_running():
            said = self.complaints()
            kind = PortTakenError if "already in use" in said else LaunchError
            raise kind(f"the server ended while it started; it said:\n{said}")

    def stop(self) -> None:
        """Ask the server to end, kill what is left of its group after the grace, and tidy up. Safe to repeat."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + self._config.grace_s
            while not self._has_exited() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            # The leader is not reaped yet, so its number can't have become another group's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._guard.dismiss()
        remove_leftovers(self._folder, self._shared_memory)

    def _has_exited(self) -> bool:
        """Looks without reaping."""
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _opened_log(self) -> BinaryIO:
        """The log, to be appended to; what an earlier server said in it is not this one's."""
        try:
            log = self.log.open("ab")
        except OSError as error:
            raise LaunchError(f"log_file {self.log} can't be written: {error.strerror}") from None
        self._log_start = log.tell()
        return log

    def _spawn(self, files: ServerFiles, ports: Ports) -> subprocess.Popen[bytes]:
        threads = self._config.threads or available_cores()
        with self._opened_log() as log:
            return subprocess.Popen(
                self._command(files, ports),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=files.environment(os.environ, threads),
                # The Python backend looks for modules in its working folder first: one without any.
                cwd=self._folder,
                start_new_session=True,
            )

    def _command(self, files: ServerFiles, ports: Ports) -> list[str]:
        command = [str(files.program), f"--model-repository={self._config.repository.absolute()}"]
        if files.backends:
            command.append(f"--backend-directory={files.backends}")
        for name, port in (("grpc", ports.grpc), ("http", ports.http), ("metrics", ports.metrics)):
            command += [f"--{name}-address={LOOPBACK}", f"--{name}-port={port}"]
        return [
            *command,
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={max(1, int(self._config.grace_s) - 1)}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
        ]
