"""A killed worker: torchrun starts the processes again, and nothing is lost but the steps since the checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
OPTIONS = ("--dropout", "0", "--checkpoint-every", "7")


def workers_of(launcher: int) -> list[int]:
    """Process ids of what a torchrun has started, rank 0 first."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(
        int(child) for child in children if b"ranker.cotrain" in Path(f"/proc/{child}/cmdline").read_bytes()
    )


def wait_for_a_checkpoint(out: Path, process: subprocess.Popen) -> None:
    """Until the first is whole."""
    while not list(out.glob("checkpoints/step-*")):
        assert process.poll() is None, "the run ended before it wrote a checkpoint"
        time.sleep(0.005)


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_checkpoint(
    cotrain_command: Callable[..., list[str]], unbroken_on_two: dict[str, torch.Tensor], tmp_path
) -> None:
    out = tmp_path / "run"
    launcher = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = subprocess.Popen(
        cotrain_command(out, *OPTIONS, launcher=launcher),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_checkpoint(out, process)
    before = workers_of(process.pid)
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert "going on after step" in stderr, "the run ended before its worker was killed"
    assert '"processes": 2' in stdout.splitlines()[-1]
    weights = load_file(out / "ranker" / "model.safetensors")
    assert weights.keys() == unbroken_on_two.keys()
    for name, weight in unbroken_on_two.items():
        assert torch.equal(weights[name], weight), name


def test_a_job_killed_on_two_processes_goes_on_on_one(
    cotrain_command: Callable[..., list[str]], unbroken_on_two: dict[str, torch.Tensor], tmp_path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        cotrain_command(out, *OPTIONS, launcher=["--standalone", "--nproc-per-node=2"]),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_a_checkpoint(out, process)
    for killed in [*workers_of(process.pid), process.pid]:
        os.kill(killed, signal.SIGKILL)
    process.wait()
    assert not (out / "ranker").exists()
    assert '"processes": 2' in (out / "plan.json").read_text()
    done = subprocess.run(
        cotrain_command(out, *OPTIONS),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert '"processes": 1' in (out / "plan.json").read_text()
    weights = load_file(out / "ranker" / "model.safetensors")
    for name, weight in unbroken_on_two.items():
        difference = (weights[name] - weight).double().norm()
        assert difference <= 1e-5 * weight.double().norm(), f"{name}: {difference}"
