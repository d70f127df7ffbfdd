"""The command that times a request's path: end to end on the real server, and silent about variants that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.interleave import Variant, time_blocks, verify
from benchmarks.report import latency_table
from benchmarks.request_path import RequestPathConfig, figures
from benchmarks.subject import Subject
from foundation.errors import DataError


def test_no_speed_is_reported_for_a_variant_whose_parity_failed() -> None:
    logits = np.ones((3, 2), dtype=np.float32)
    variants = [
        Variant("unsplit", lambda number: logits, 1e-5),
        Variant("split", lambda number: logits, 1e-5),
        Variant("exported", lambda number: logits + np.float32(0.5), 1e-5),
    ]
    timings = verify(variants[0], variants[1:], [0])
    time_blocks(variants, [[0], [1]], timings)
    report = figures(timings)
    assert report["parity"]["exported"] == 0.5
    assert "parity 5.00e-01" in report["refused"]["exported"]
    assert set(report["latency"]) == {"unsplit", "split"}
    assert set(report["slower_than_split"]) == {"unsplit"}
    row = next(line for line in latency_table(report).splitlines() if line.startswith("exported"))
    assert "refused" in row and "ms" not in row


def test_without_a_right_split_there_is_no_ratio() -> None:
    logits = np.ones((3, 2), dtype=np.float32)
    variants = [
        Variant("unsplit", lambda number: logits, 1e-5),
        Variant("split", lambda number: logits * 2, 1e-5),
    ]
    timings = verify(variants[0], variants[1:], [0])
    time_blocks(variants, [[0]], timings)
    assert figures(timings)["slower_than_split"] == {}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"requests": 5, "blocks": 10}, "--requests is 5"),
        ({"chunk": 0}, "--chunk is 0"),
        ({"rate": -1.0}, "--rate is -1.0"),
        ({"ranker": Path("x")}, "--ranker and --data"),
        ({"repository": Path("x")}, "--repository needs --ranker"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, field: str) -> None:
    with pytest.raises(DataError, match=field):
        RequestPathConfig(**settings)


def test_the_command_measures_every_variant_on_the_real_server(subject: Subject) -> None:
    command = [sys.executable, "-m", "benchmarks.request_path"]
    command += ["--ranker", str(subject.folder), "--data", str(subject.dataset.folder)]
    command += ["--requests", "8", "--blocks", "2", "--candidates", "20", "--history", "9", "--rate", "100"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown, last = done.stdout.rstrip("\n").rsplit("\n", 1)
    report = json.loads(last)
    assert set(report["latency"]) == {"unsplit", "split", "exported", "served"}
    assert report["latency"]["served"]["count"] == 8 and report["latency"]["unsplit"]["count"] == 2
    assert not report["refused"] and max(report["parity"].values()) <= 1e-5
    assert report["environment"]["commit"] and report["settings"]["history"] == 9
    assert report["open_loop"]["from_schedule"]["count"] == 8
    # The ceiling stands before the measurement.
    assert shown.index("ceiling:") < shown.index("served")
    assert "Warning" not in done.stderr
