"""Pre-training on two processes takes the steps of one: dropout included, and over a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

SMALL = [
    *("--decoder.width", "8", "--decoder.num-layers", "1", "--window.window", "20", "--window.block", "5"),
    *("--tokens-per-batch", "300"),
]
RUN = [*SMALL, "--parts", "2", "--decoder.dropout", "0.3", "--epochs", "4", "--checkpoint-every", "5"]
LEARNED = [
    *("--decoder.num-layers", "2", "--layer-weight", "0.5", "--aggregation.tokens", "attention"),
    *("--heads", "genres", "next.gap", "--intent.label", "device", "--signal.facet", "duration"),
    *("--signal.scale", "0.001", "--signal.missing", "1", "--multi-token.horizon", "3"),
]
MODULE = ["-m", "foundation.pretrain"]


def _start(processes: int, data: Path, out: Path, options: list[str]) -> list[subprocess.Popen[str]]:
    """As torchrun would, but every process is ours to kill."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, *MODULE, "--data", str(data), "--out", str(out), *options]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = []
    for rank in range(processes):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def _finish(started: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    outputs = [process.communicate(timeout=120) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs


def _assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(out / "release" / "model.safetensors") for out in (one, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        difference = (weight - second[name]).double().norm()
        assert difference <= 1e-5 * weight.double().norm(), f"{name}: {difference}"


def test_one_process_and_two_take_the_same_steps(synthetic_folder, tmp_path):
    options = [*RUN, *LEARNED]
    ((one, _),) = _finish(_start(1, synthetic_folder, tmp_path / "one", options))
    first, second = _finish(_start(2, synthetic_folder, tmp_path / "two", options))
    # Rank 0 alone reports.
    assert second[0] == ""
    assert "2 processes" in first[1]
    assert "epoch 4/4" not in second[1]
    documents = [json.loads(text.splitlines()[-1]) for text in (one, first[0])]
    assert documents[0]["steps"] == documents[1]["steps"] >= 12
    assert abs(documents[0]["loss"] - documents[1]["loss"]) < 1e-5
    _assert_same_weights(tmp_path / "one", tmp_path / "two")
    (events,) = (tmp_path / "two" / "tensorboard").iterdir()
    assert events.is_file()


def test_a_run_killed_on_two_processes_goes_on_with_one(synthetic_folder, tmp_path):
    options = [*RUN, "--epochs", "12"]
    _finish(_start(1, synthetic_folder, tmp_path / "unbroken", options))
    killed = tmp_path / "killed"
    both = _start(2, synthetic_folder, killed, options)
    deadline_s = time.monotonic() + 60
    while not list((killed / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    for process in both:
        process.send_signal(signal.SIGKILL)
    for process in both:
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    ((_, errors),) = _finish(_start(1, synthetic_folder, killed, options))
    assert "going on after step" in errors
    _assert_same_weights(tmp_path / "unbroken", killed)


def test_torchrun_runs_it_and_parts_that_processes_cannot_share_are_refused(synthetic_folder, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *MODULE]
    command = [*launcher, "--data", str(synthetic_folder), "--out", str(tmp_path), *SMALL, "--epochs", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run_in(parts: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--parts", parts],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    refused = run_in("3")
    assert refused.returncode != 0
    said = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1
    assert "batch.parts is 3 and there are 2 processes" in said[0]
    assert not (tmp_path / "run.json").exists()
    done = run_in("2")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["release"] == str(tmp_path / "release")
