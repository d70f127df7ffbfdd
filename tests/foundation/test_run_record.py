"""A run's folder: one run at a time trains in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.errors import DataError
from foundation.run_record import sole_run

HOLDER = """
import sys, pathlib
from foundation.run_record import sole_run
with sole_run(pathlib.Path(sys.argv[1])):
    print("training", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_run_at_a_time_until_its_process_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "training\n"
        with (
            pytest.raises(DataError, match=f"another run is training here, process {other.pid} on"),
            sole_run(tmp_path),
        ):
            pass
        other.kill()
    with sole_run(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "run.lock").read_text(encoding="utf-8")


def test_a_folder_that_cant_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "run.lock").mkdir()
    with sole_run(tmp_path):
        pass
