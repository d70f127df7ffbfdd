"""A co-training run that is killed and started again ends in the weights of an unbroken one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from foundation.manifest import file_hash

SETTINGS = ["--requests-per-batch", "6", "--epochs", "7", "--hidden-widths", "32", "16", "--dot-width", "16"]


def command(data: Path, release: Path, out: Path, *options: str) -> list[str]:
    module = [sys.executable, "-m", "ranker.cotrain"]
    folders = ["--data", str(data), "--release", str(release), "--out", str(out)]
    return [*module, *folders, *SETTINGS, *options]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").glob("step-*")}


def run_to_the_end(words: list[str]) -> tuple[dict, str]:
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_run_killed_at_random_moments_ends_in_the_same_weights(
    synthetic_folder, release_folder, tmp_path
) -> None:
    folders = (synthetic_folder, release_folder)
    expected, _ = run_to_the_end(command(*folders, tmp_path / "unbroken"))
    killed = tmp_path / "killed"
    resumed_from = []
    for _ in range(2):
        process = subprocess.Popen(
            command(*folders, killed, "--checkpoint-every", "7"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = checkpoints(killed)
        while checkpoints(killed) <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
        resumed_from.append(max(checkpoints(killed)))
    found, said = run_to_the_end(command(*folders, killed))
    assert "going on after step" in said
    for name in ("ranker/model.safetensors", "test_requests.parquet"):
        assert file_hash(killed / name) == file_hash(tmp_path / "unbroken" / name), (
            f"killed at {resumed_from}"
        )
    for name in ("steps", "tasks", "auc"):
        assert found[name] == expected[name]
