"""The process of one variant, as its parent holds it: asked, waited for, stopped while others are timed, and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

_LOG_LINES = 12
_CHUNK_BYTES = 65_536


class WorkerLost(RuntimeError):
    """A worker ended, or did not answer in time, or said what is no answer; the message shows the end of its log."""


class Worker:
    """A process that answers as `benchmarks.baselines.protocol` says.

    Must be made by the main thread: the process dies with the thread that started it.

    Args:
        name: of its variant, for messages.
        command: to run.
        log: where its stderr goes.
        environment: of the process.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = log
        self._read = b""
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                bufsize=0,
                # A session of its own: Ctrl-C reaches us alone, and signals reach whatever it starts in turn.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, do: str, **said: Any) -> None:
        """Ask without waiting; answers come in the order of questions.

        Raises:
            WorkerLost: it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **said}).encode() + b"\n")
        except BrokenPipeError:
            raise self._lost("ended") from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer; one with `error` where the worker could not do what it was asked.

        Raises:
            WorkerLost: it ended, or nothing came within `timeout_s`, or no JSON object.
        """
        assert self._process.stdout is not None
        deadline = monotonic() + timeout_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - monotonic()))
            if not ready:
                raise self._lost(f"did not answer within {timeout_s:,.0f} s")
            chunk = os.read(self._process.stdout.fileno(), _CHUNK_BYTES)
            if not chunk:
                raise self._lost("ended")
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._lost(f"answered {line[:100]!r}, which is no JSON object")
        return answer

    def ask(self, do: str, timeout_s: float, **said: Any) -> dict[str, Any]:
        """`send`, then `receive`."""
        self.send(do, **said)
        return self.receive(timeout_s)

    def stop(self) -> None:
        """Take it off the processors, with whatever it started, threads that spin included."""
        self._signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # it has ended, and was waited for
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[Worker]:
        """Running inside the `with`, stopped after it."""
        self.wake()
        try:
            yield self
        finally:
            self.stop()

    def close(self) -> None:
        """End it at once, and all that it started: it has nothing to save."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _lost(self, what: str) -> WorkerLost:
        with suppress(subprocess.TimeoutExpired):  # its end of the pipe can close a moment before it ends
            self._process.wait(0.5)
        status = self._process.poll()
        ended = "" if status is None else f" (status {status})"
        log = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        shown = "".join(f"\n    {line}" for line in log) or " is empty"
        return WorkerLost(f"{self.name}: its process {what}{ended}; the end of its log:{shown}")


def memory_bytes(pid: int) -> dict[str, int]:
    """`resident` and `peak` bytes of a process, of the peak since it began or since `forget_peak`."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        name: int(fields[field].split()[0]) * 1024
        for name, field in (("resident", "VmRSS"), ("peak", "VmHWM"))
    }


def forget_peak(pid: int) -> None:
    """Let the peak of a process count from now on (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
