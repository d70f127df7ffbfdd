"""Runs jobs one after another, each as the command a reader could type, and keeps the JSON each ends with."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any

_TERM_PATIENCE_S = 45
"""After SIGTERM: Triton Server drains for up to 30 s, and torchrun gives its workers as long."""


class StationFailed(RuntimeError):
    """A job ended with a status other than 0, which is its own explanation to give; it has given it."""

    def __init__(self, title: str, status: int) -> None:
        super().__init__(f"{title} ended with status {status}")
        self.title, self.status = title, status


class Stations:
    """Runs jobs, shows their output as it comes, and times them.

    Attributes:
        out: where commands, their output and their times are shown.
        seconds: how long each finished job took, by title.
    """

    def __init__(self, out: IO[str] = sys.stdout) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}

    def run(self, title: str, module: str, *arguments: object) -> dict[str, Any]:
        """Run `python -m module arguments` to its end.

        Its stderr (progress) is inherited; its stdout is passed on line by line, all but the JSON document at its
        end. An interrupt stops the job before it goes on up.

        Returns:
            the JSON document that the job printed as its last line.

        Raises:
            StationFailed: its status was not 0.
            ValueError: its last line is not a JSON object.
        """
        command = _command(module, arguments)
        self.say(f"\n== {title}\n$ {shown(command)}")
        begin = monotonic()
        with _child(command) as process:
            last = self._pass_on(_stdout(process))
            status = process.wait()
        if status:
            raise StationFailed(title, status)
        self.seconds[title] = round(monotonic() - begin, 1)
        self.say(f"== {title}: {self.seconds[title]:,.1f} s")
        return _document(title, last)

    @contextmanager
    def running(self, title: str, module: str, *arguments: object) -> Iterator[dict[str, Any]]:
        """Run `python -m module arguments` beside what happens inside the `with`, then stop it by SIGTERM.

        Yields:
            the JSON document that the job prints as its first line, once it is ready.

        Raises:
            StationFailed: it ended before it was ready, or did not stop cleanly, with status 0.
            ValueError: its first line is not a JSON object.
        """
        command = _command(module, arguments)
        self.say(f"\n== {title}\n$ {shown(command)} &")
        begin = monotonic()
        with _child(command) as process:
            first = _stdout(process).readline()
            if not first:
                raise StationFailed(title, process.wait())
            self.seconds[title] = round(monotonic() - begin, 1)
            self.say(f"== {title}: ready after {self.seconds[title]:,.1f} s")
            yield _document(title, first)
            status = _stop(process)
        if status:
            raise StationFailed(title, status)
        self.say(f"== {title}: stopped")

    def say(self, text: str) -> None:
        """Print at once: jobs write to the same terminal."""
        print(text, file=self.out, flush=True)

    def _pass_on(self, lines: IO[str]) -> str:
        """Print lines as they come, holding back what may be the closing document; returns the held one."""
        held = ""
        for line in lines:
            if held:
                self.say(held)
            held = line.rstrip("\n")
            if not held.startswith("{"):
                self.say(held)
                held = ""
        return held


def shown(command: Sequence[str]) -> str:
    """A command as a reader would type it: quoted, and its program relative to the working folder."""
    program = Path(command[0])
    here = Path.cwd()
    if program.is_relative_to(here):
        program = program.relative_to(here)
    return shlex.join([str(program), *command[1:]])


def _command(module: str, arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", module, *(str(argument) for argument in arguments)]


@contextmanager
def _child(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, gone by the end of the `with` however that ends.

    Its own session, because Ctrl-C would otherwise reach it at the same moment as us, from the terminal.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)
        _stdout(process).close()


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _stop(process: subprocess.Popen[str]) -> int:
    """Ask a process to end, and kill what is left of its group, itself included. Returns its status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_PATIENCE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _document(title: str, line: str) -> dict[str, Any]:
    """The JSON object in a job's line."""
    try:
        document = json.loads(line)
    except json.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise ValueError(f"{title}: this line should be a JSON object: {line.strip()!r}")
    return document
