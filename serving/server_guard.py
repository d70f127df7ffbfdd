"""Ends a server whose launcher was killed: a process beside the server that waits for the launcher to go.

The launcher holds the other end of this process's standard input, and writes `STOPPED` to it once it has ended the
server itself. If the input ends without it, the launcher is gone and the server is an orphan. Standard library
only: it runs as a plain file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
STOPPED = b"stopped"


class Guard:
    """The launcher's side.

    Args:
        group: process group of the server.
        folder: the server's temporary folder.
        prefix: of the names of the server's shared memory.
    """

    def __init__(self, group: int, folder: Path, prefix: str) -> None:
        # -P: the modules beside this file are no top-level modules.
        command = [sys.executable, "-P", str(Path(__file__)), str(group), str(folder), prefix]
        # A session of its own, so that a Ctrl-C in the terminal reaches the launcher alone.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def dismiss(self) -> None:
        """Say that the server has ended."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(STOPPED)


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove a server's temporary folder, and the shared memory that a killed one leaves behind."""
    for leftover in SHARED_MEMORY.glob(f"{prefix}*"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _watch(group: int, folder: Path, prefix: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == STOPPED:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    remove_leftovers(folder, prefix)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
