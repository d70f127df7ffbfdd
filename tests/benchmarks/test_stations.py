"""The stage runner: real child processes, their output, their end."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.stations import StationFailed, Stations, shown

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes `python -m NAME` run the given text."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_job_shows_its_output_and_returns_its_document(job) -> None:
    name = job("speaks", "import sys\nprint('working on', sys.argv[1])\nprint('{\"loss\": 0.5}')\n")
    out = io.StringIO()
    stations = Stations(out)
    assert stations.run("speak", name, "it") == {"loss": 0.5}
    shown_text = out.getvalue()
    assert "-m speaks it" in shown_text and "working on it" in shown_text
    assert "loss" not in shown_text
    assert list(stations.seconds) == ["speak"]


def test_only_the_closing_document_is_held_back(job) -> None:
    name = job("twice", "print('{\"a\": 1}')\nprint('between')\nprint('{\"b\": 2}')\n")
    out = io.StringIO()
    assert Stations(out).run("twice", name) == {"b": 2}
    assert '{"a": 1}\nbetween\n' in out.getvalue() and '"b"' not in out.getvalue()


def test_a_failed_job_says_which_and_how(job) -> None:
    name = job("fails", "raise SystemExit(3)\n")
    with pytest.raises(StationFailed, match="prepare ended with status 3") as failure:
        Stations(io.StringIO()).run("prepare", name)
    assert failure.value.status == 3


def test_a_job_without_a_document_is_an_error(job) -> None:
    name = job("silent", "print('done')\n")
    with pytest.raises(ValueError, match="JSON object"):
        Stations(io.StringIO()).run("silent", name)


READY = "import json, os, signal, sys, time\nprint(json.dumps({'pid': os.getpid()}), flush=True)\n"


def test_a_job_beside_is_used_once_ready_and_stopped_at_the_end(job) -> None:
    text = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(0))\n" + READY + "time.sleep(60)\n"
    with Stations(io.StringIO()).running("wait", job("waits", text)) as document:
        assert _is_running(document["pid"])
    assert not _is_running(document["pid"])


def test_an_error_inside_stops_the_job_beside(job) -> None:
    name, stations = job("sleeps", READY + "time.sleep(60)\n"), Stations(io.StringIO())
    with pytest.raises(RuntimeError, match="boom"), stations.running("sleep", name) as document:
        raise RuntimeError("boom")
    assert not _is_running(document["pid"])


def test_a_job_beside_must_get_ready_and_end_cleanly(job) -> None:
    stations = Stations(io.StringIO())
    with (
        pytest.raises(StationFailed, match="status 4"),
        stations.running("one", job("never", "raise SystemExit(4)\n")),
    ):
        pytest.fail("was never ready")
    with (
        pytest.raises(StationFailed, match="status -15"),
        stations.running("two", job("rude", READY + "time.sleep(60)\n")),
    ):
        pass


def test_an_interrupt_stops_the_job(job, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    name = job(
        "endless",
        f"import os, pathlib, time\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n",
    )
    program = f"from benchmarks.stations import Stations\nStations().run('endless', {name!r})\n"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    runner = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=20)
    assert runner.returncode != 0
    assert not _is_running(int(marker.read_text()))


def test_commands_are_shown_as_one_would_type_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown([str(tmp_path / ".venv/bin/python"), "-m", "x", "a b"]) == ".venv/bin/python -m x 'a b'"
    assert shown(["/usr/bin/python3", "-m", "x"]) == "/usr/bin/python3 -m x"
