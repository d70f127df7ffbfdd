"""Checkpoints: exact, atomic, the newest two kept, with and without a process group."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.multiprocessing.spawn import spawn

from foundation.checkpoint import (
    AtomicWriter,
    BackgroundCheckpoints,
    checkpoint_step,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from foundation.distributed import process_group
from foundation.errors import DataError


def _state(value: float) -> dict:
    return {
        "model": {"weight": torch.full((3, 2), value), "bias": torch.full((2,), -value)},
        "seen": torch.tensor([value, 2.0], dtype=torch.float64),
    }


def test_round_trip_is_exact_in_place_and_silent(tmp_path):
    saved = {"model": {"weight": torch.randn(5, 3)}, "seen": torch.rand(2, dtype=torch.float64)}
    loaded = {"model": {"weight": torch.zeros(5, 3)}, "seen": torch.zeros(2, dtype=torch.float64)}
    weight = loaded["model"]["weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_checkpoint(tmp_path, 7, saved)
        newest = latest_checkpoint(tmp_path)
        assert newest is not None
        load_checkpoint(newest, loaded)
    assert checkpoint_step(newest) == 7
    assert torch.equal(weight, saved["model"]["weight"])
    assert torch.equal(loaded["seen"], saved["seen"])


def test_keeps_the_newest_two(tmp_path):
    for step in (1, 20, 300):
        save_checkpoint(tmp_path, step, _state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000300"]


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_half_written_checkpoints_are_ignored_and_cleared(tmp_path):
    first = save_checkpoint(tmp_path, 1, _state(1.0))
    half = tmp_path / ".step-00000002.writing"
    shutil.copytree(first, half)
    without_metadata = tmp_path / "step-00000003"
    shutil.copytree(first, without_metadata)
    (without_metadata / ".metadata").unlink()
    assert latest_checkpoint(tmp_path) == first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_checkpoint(tmp_path, 2, _state(2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000001",
        "step-00000002",
        "step-00000003",
    ]


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    first = save_checkpoint(tmp_path, 1, _state(1.0))

    def fail_on_checkpoints(source, target):
        if Path(target).name.startswith("step-"):
            raise OSError("disk full")
        rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, "rename", fail_on_checkpoints)
    with pytest.raises(
        DataError, match=r"step-00000002: process 0 could not write .*disk full; step-00000001 is whole"
    ):
        save_checkpoint(tmp_path, 2, _state(2.0))
    assert latest_checkpoint(tmp_path) == first


def test_saving_a_step_again_replaces_it(tmp_path):
    save_checkpoint(tmp_path, 4, _state(1.0))
    save_checkpoint(tmp_path, 4, _state(2.0))
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    loaded = _state(0.0)
    load_checkpoint(newest, loaded)
    assert loaded["model"]["weight"][0, 0] == 2.0


def test_bad_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="step"):
        save_checkpoint(tmp_path, -1, _state(0.0))
    with pytest.raises(ValueError, match="step-NNNNNNNN"):
        checkpoint_step(tmp_path)


def test_a_background_checkpoint_holds_the_state_as_it_was_while_training_goes_on(tmp_path, monkeypatch):
    go_on = threading.Event()
    write_data = AtomicWriter.write_data

    def write_when_told(writer, *arguments):
        assert go_on.wait(30)
        return write_data(writer, *arguments)

    monkeypatch.setattr(AtomicWriter, "write_data", write_when_told)
    state, loaded = _state(1.0), _state(0.0)
    with process_group(alone=True):
        with BackgroundCheckpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state)
            # `save` is back though nothing is written; steps now change the state in place.
            state["model"]["weight"].fill_(7.0)
            assert latest_checkpoint(tmp_path) is None
            go_on.set()
            checkpoints.save(2, state)
            # The one before is there: never two at a time.
            assert (tmp_path / "step-00000001" / ".metadata").is_file()
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]
        load_checkpoint(tmp_path / "step-00000001", loaded)
    assert torch.equal(loaded["model"]["weight"], _state(1.0)["model"]["weight"])


def _fail_on_one_rank(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    create_stream = FileSystem.create_stream

    def no_space(system, path, mode):
        if rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return create_stream(system, path, mode)

    checkpoints = BackgroundCheckpoints(folder / "checkpoints")
    checkpoints.save(1, _state(1.0))
    checkpoints.finish()
    with mock.patch.object(FileSystem, "create_stream", no_space):
        checkpoints.save(2, _state(2.0))
        with pytest.raises(
            DataError, match=r"step-00000002: process 1 .*No space left.*; step-00000001 is whole"
        ):
            checkpoints.finish()
    dist.barrier()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]
    dist.barrier()
    checkpoints.save(2, _state(2.0))
    checkpoints.finish()
    dist.barrier()
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert checkpoint_step(newest) == 2
    dist.destroy_process_group()


def test_a_disk_full_on_one_rank_is_told_on_all_and_harms_nothing_written_before(tmp_path):
    spawn(_fail_on_one_rank, args=(2, tmp_path), nprocs=2)


def _save_as_rank(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    for step in (1, 2, 3):
        save_checkpoint(folder / "checkpoints", step, _state(float(step)))
    loaded = _state(0.0)
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert checkpoint_step(newest) == 3
    load_checkpoint(newest, loaded)
    assert loaded["model"]["weight"][2, 1] == 3.0
    dist.destroy_process_group()


def test_two_ranks_save_and_one_process_loads(tmp_path):
    spawn(_save_as_rank, args=(2, tmp_path), nprocs=2)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    loaded = _state(0.0)
    load_checkpoint(newest, loaded)
    assert torch.equal(loaded["seen"], _state(3.0)["seen"])
