"""The server's life: started with a right answer, found ill by real inferences, cured, and gone without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.client import Client, RankError
from serving.probe import Probe
from serving.rank_request import RankRequest
from serving.server import Server, ServerConfig, launch
from serving.server_files import LaunchError, ServerFilesError, files_of_program
from serving.server_process import Ports
from serving.threads import available_cores, intra_op_threads


def processes_of(group: int) -> list[int]:
    """Processes of a process group that are not zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, process_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(process_group) == group and state != "Z":
                found.append(int(entry.name))
    return found


def listening_addresses(ports: set[int]) -> set[str]:
    """Local addresses (hexadecimal, as the kernel writes them) that listen on any of these ports."""
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, port = local.split(":")
            if state == "0A" and int(port, 16) in ports:
                addresses.add(address)
    return addresses


def regions() -> set[Path]:
    """Shared memory of all servers that are running."""
    return set(Path("/dev/shm").glob("marquee_*"))


def test_the_server_listens_on_loopback_alone(server: Server):
    ports = server.ports
    addresses = listening_addresses({ports.grpc, ports.http, ports.metrics})
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, in IPv4 and IPv6


def test_the_models_process_has_the_environment_that_is_meant(server: Server):
    (stub,) = (pid for pid in processes_of(server.pid) if pid != server.pid)
    lines = Path(f"/proc/{stub}/environ").read_bytes().decode().split("\0")
    environment = dict(line.split("=", 1) for line in lines if line)
    assert environment["GOMP_SPINCOUNT"] == "10000"  # not what foundation set for training in this process
    assert environment.get("OMP_WAIT_POLICY") == os.environ.get("OMP_WAIT_POLICY")
    assert environment["MARQUEE_INTRA_OP_THREADS"] == "1"


def computing_ms(process: int) -> dict[str, int]:
    """Processor time of each thread of a process so far."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return {thread.name: int((thread / "schedstat").read_text().split()[0]) // 10**6 for thread in threads}


def test_a_server_of_one_thread_computes_with_one(server: Server, client: Client, make_request):
    (stub,) = (pid for pid in processes_of(server.pid) if pid != server.pid)
    request = make_request(num_events=12, num_candidates=150)
    client.rank(request)
    before = computing_ms(stub)
    for _ in range(200):
        client.rank(request)
    spent = sorted(ms - before.get(thread, 0) for thread, ms in computing_ms(stub).items())
    assert spent[-1] > 50
    assert sum(spent[:-1]) < 0.1 * spent[-1], spent


def test_a_dead_stub_is_noticed_cured_and_leaves_nothing(
    repository: Path,
    make_request: Callable[..., RankRequest],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    request, regions_before = make_request(5, 5), regions()
    log = tmp_path / "server.log"
    log.write_text("E0101 an earlier server's complaint\n")
    server = Server(ServerConfig(repository, threads=1, grace_s=2, log_file=log))
    try:
        with Client(server.grpc_url) as client:
            before = client.rank(request).logits.copy()
        (stub,) = (pid for pid in processes_of(server.pid) if pid != server.pid)
        os.kill(stub, signal.SIGKILL)
        assert not server.healthy()
        assert "not healthy" in str(server.problem())
        ports, group = server.ports, server.pid
        server.restart()
        assert "the server that is stopped said last:\nE" in caplog.text
        assert "an earlier server's" not in caplog.text
        assert processes_of(group) == []
        assert server.ports == ports
        assert server.healthy()
        with Client(server.grpc_url) as client:
            assert np.array_equal(client.rank(request).logits, before)
        assert regions() - regions_before
        group = server.pid
    finally:
        server.stop()
    assert processes_of(group) == []
    assert regions() <= regions_before
    server.stop()  # once more changes nothing
    text = log.read_text()
    assert text.startswith("E0101 an earlier server's complaint\n")
    assert text.count("Started GRPCInferenceService") == 2, "the whole output of both servers"


def test_a_log_file_that_cannot_be_written_is_named(repository: Path, tmp_path: Path):
    with pytest.raises(LaunchError, match=r"log_file .*server\.log can't be written: No such file"):
        Server(ServerConfig(repository, threads=1, log_file=tmp_path / "none" / "server.log"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(repository: Path, tmp_path: Path, number: signal.Signals):
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "serving.launch", "--repository", str(repository), "--threads", "1"]
    launcher = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        line = launcher.stdout.readline()
        endpoints = json.loads(line)
        assert ready.read_text() == line
        with Client(endpoints["grpc"]) as client:
            assert client.contract.tasks == ("watch", "like")
        assert len(processes_of(endpoints["pid"])) == 2
        started = time.monotonic()
        launcher.send_signal(number)
        assert launcher.wait(timeout=20) == 0
        assert time.monotonic() - started < 10
        assert launcher.stdout.read() == "", "one line is printed, no more"
    finally:
        launcher.kill()
        launcher.wait()
    assert processes_of(endpoints["pid"]) == []
    assert not ready.exists()


def test_a_killed_launcher_leaves_no_server(repository: Path):
    regions_before = regions()
    code = (
        "import sys, time; from pathlib import Path; from serving.server import launch\n"
        "with launch(Path(sys.argv[1]), threads=1) as server: print(server.pid, flush=True); time.sleep(600)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, repository], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    group = int(launcher.stdout.readline())
    assert processes_of(group)
    assert regions() - regions_before
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 10
    while (processes_of(group) or regions() - regions_before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(group) == []
    assert regions() <= regions_before


def test_a_wrong_answer_is_a_problem(server: Server, model_folder: Path, tmp_path: Path):
    """Launching raises what the probe reports; here the expected answer is a little off."""
    folder = tmp_path / "marquee" / "1"
    shutil.copytree(model_folder, folder)
    assert Probe(tmp_path).problem(server.grpc_url, timeout_s=20) is None
    answer = json.loads((folder / "sample_answer.json").read_text())
    answer["logits"][0][0] += 0.01
    (folder / "sample_answer.json").write_text(json.dumps(answer))
    problem = Probe(tmp_path).problem(server.grpc_url, timeout_s=20)
    assert problem is not None
    assert problem.startswith("a wrong answer: it differs by 0.0")


def test_what_was_handled_is_read_from_the_servers_metrics(
    server: Server, make_request: Callable[..., RankRequest]
):
    before = server.num_handled()
    assert before is not None
    with Client(server.grpc_url, timeout_s=20) as client:
        client.rank(make_request(5, 5))
        with pytest.raises(RankError):
            client.rank(make_request(5, 0))
    assert server.healthy()
    assert server.num_handled() == before + 2


def test_a_damaged_model_is_reported_by_file(repository: Path, tmp_path: Path):
    damaged = shutil.copytree(repository, tmp_path / "damaged")
    (damaged / "marquee" / "1" / "vocab.json").write_text("{}")
    with (
        pytest.raises(LaunchError, match=r"vocab\.json: sha256 is .*it was changed"),
        launch(damaged, threads=1),
    ):
        pass


def test_a_port_that_is_taken_is_reported(repository: Path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken = held.getsockname()[1]
        config = ServerConfig(repository, ports=Ports(grpc=taken), threads=1)
        with pytest.raises(
            LaunchError, match=f"grpc port {taken} on 127.0.0.1 can't be had: Address already in use"
        ):
            Server(config)


def test_what_is_not_there_is_named(tmp_path: Path, repository: Path):
    with pytest.raises(LaunchError, match=r"sample_request\.json: not found; serving\.export writes it"):
        Server(ServerConfig(tmp_path))
    with pytest.raises(ServerFilesError, match="not an executable tritonserver"):
        Server(ServerConfig(repository, tritonserver=tmp_path / "tritonserver"))


def test_a_server_of_ones_own_brings_its_backends(tmp_path: Path):
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert files_of_program(program).backends is None
    (tmp_path / "backends").mkdir()
    files = files_of_program(program)
    assert files.backends == tmp_path / "backends"
    environment = files.environment({"PATH": "/bin", "HOME": "/h"}, threads=3)
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert environment["MARQUEE_INTRA_OP_THREADS"] == "3"
    assert environment["HOME"] == "/h"
    assert environment["GOMP_SPINCOUNT"] == "10000"
    assert "OMP_WAIT_POLICY" not in environment
    assert files.environment({"GOMP_SPINCOUNT": "7"}, threads=3)["GOMP_SPINCOUNT"] == "7"


def test_threads_are_always_a_number():
    assert intra_op_threads({}) == available_cores() >= 1
    assert intra_op_threads({"MARQUEE_INTRA_OP_THREADS": "3"}) == 3
    for wrong in ("0", "-1", "many", ""):
        with pytest.raises(ValueError, match="MARQUEE_INTRA_OP_THREADS"):
            intra_op_threads({"MARQUEE_INTRA_OP_THREADS": wrong})
