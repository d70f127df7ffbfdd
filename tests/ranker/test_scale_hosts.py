"""Two launch groups on loopback, as two hosts would start: the same torchrun command on each, one run."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

import torch
from safetensors.torch import load_file


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_launch_groups_train_the_ranker_of_one(
    cotrain_command: Callable[..., list[str]], unbroken_on_two: dict[str, torch.Tensor], tmp_path
) -> None:
    out = tmp_path / "shared" / "run"
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two-hosts"]
    launcher += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    hosts = [
        subprocess.Popen(
            cotrain_command(out, "--dropout", "0", launcher=launcher),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [host.communicate(timeout=180) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    # One of the groups has rank 0, which reports for all.
    documents = [stdout.splitlines()[-1] for stdout, _ in said if '"processes"' in stdout]
    assert len(documents) == 1
    assert '"processes": 2' in documents[0]
    weights = load_file(out / "ranker" / "model.safetensors")
    for name, weight in unbroken_on_two.items():
        assert torch.equal(weights[name], weight), name
