"""A disk that is full when a checkpoint is due: one clear line, nothing older harmed, and the run goes on later."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from foundation.manifest import file_hash

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run_to_the_end(words: list[str]) -> str:
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def test_a_run_whose_disk_fills_up_says_so_and_resumes_to_the_same_weights(
    cotrain_command: Callable[..., list[str]], tmp_path
) -> None:
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    run_to_the_end(cotrain_command(unbroken))
    words = cotrain_command(out, "--checkpoint-every", "7")
    process = subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("checkpoints/step-*")):
        assert process.poll() is None, "the run ended before it wrote a checkpoint"
        time.sleep(0.005)
    # From now on a file may be half as large as a checkpoint's: writing one fails as on a full disk.
    written = next(iter((out / "checkpoints").glob("step-*/*.distcp"))).stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (written // 2, resource.RLIM_INFINITY))
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 2, stderr
    (error,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    kept = checkpoints(out)
    assert f"{kept[-1]} is whole: make room, then start the same command again" in error
    assert "process 0 could not write this checkpoint" in error
    assert "Traceback" not in stderr
    # Nothing half written is left to fill the disk, and there is no ranker yet.
    assert all(name.startswith("step-") for name in kept)
    assert not (out / "ranker").exists()
    assert "going on after step" in run_to_the_end(words)
    for name in ("ranker/model.safetensors", "test_requests.parquet"):
        assert file_hash(out / name) == file_hash(unbroken / name), name
