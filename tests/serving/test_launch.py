"""The command that serves: its settings, and when it starts the server anew."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from serving.launch import watch
from serving.server import Server


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--threads", "-1", "error: threads is -1; it must be above 0, or 0 for all available cores\n"),
        (
            "--grpc-port",
            "70000",
            "error: grpc port is 70000; it must be from 0, for any free one, to 65535\n",
        ),
        ("--check-every-s", "0", "error: check_every_s is 0.0; it must be above 0 seconds\n"),
    ],
)
def test_a_wrong_setting_ends_the_command_in_one_line(
    repository: Path, option: str, value: str, message: str
):
    command = [sys.executable, "-m", "serving.launch", "--repository", str(repository), option, value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")


class _Failing:
    """A server whose checks fail as told, and which counts how often it is started anew.

    Args:
        problems: of one check after another.
        stopping: set at the last one.
        handled: what it has handled, read after read; it stands still at the last.
    """

    def __init__(
        self, problems: list[str | None], stopping: threading.Event, handled: Sequence[int | None] = (0,)
    ) -> None:
        self.problems, self.stopping, self.num_restarts = problems, stopping, 0
        self.handled = list(handled)

    def num_handled(self) -> int | None:
        return self.handled.pop(0) if len(self.handled) > 1 else self.handled[0]

    def problem(self) -> str | None:
        found = self.problems.pop(0)
        if not self.problems:
            self.stopping.set()
        return found

    def restart(self) -> None:
        self.num_restarts += 1


@pytest.mark.parametrize(
    ("problems", "num_restarts"),
    [([None, "slow", None, "slow", None], 0), (["dead", "dead", None], 1), (["dead"] * 5, 2)],
)
def test_a_server_is_started_anew_after_checks_failed_in_a_row(problems: list[str | None], num_restarts: int):
    stopping = threading.Event()
    failing = _Failing(list(problems), stopping)
    watch(cast(Server, failing), stopping, check_every_s=0.001)
    assert failing.num_restarts == num_restarts


SLOW = "DEADLINE_EXCEEDED: no answer in time"


@pytest.mark.parametrize(
    ("problem", "handled", "num_restarts"),
    [
        (SLOW, [0, 5, 9, 12, 20], 0),
        (SLOW, [3, 3], 2),
        (SLOW, [0, 5, 5, 5, 5], 1),
        (SLOW, [None], 2),
        ("INTERNAL: Stub process is not healthy", [0, 5, 9, 12, 20], 2),
    ],
)
def test_a_server_that_is_slow_but_answers_others_is_left_alone(
    problem: str, handled: list[int | None], num_restarts: int
):
    stopping = threading.Event()
    failing = _Failing([problem] * 4, stopping, handled)
    watch(cast(Server, failing), stopping, check_every_s=0.001)
    assert failing.num_restarts == num_restarts
