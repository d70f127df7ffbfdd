"""Training checkpoints on torch.distributed.checkpoint: atomic, resumable, the newest two kept, also in the background.

The metadata file of torch.distributed.checkpoint is pickled, so resume only from a folder of your own; a
release (`foundation.release`) is what travels between people, and holds no pickle.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.storage import WriteResult

from foundation.distributed import has_group, is_first_rank
from foundation.errors import DataError

KEPT_CHECKPOINTS = 2
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_METADATA_FILE = ".metadata"


class AtomicWriter(FileSystemWriter):
    """Writes the checkpoint of one step: it is there whole, or not at all.

    A killed process leaves a whole checkpoint or an ignored temporary folder, never half of one: the files
    are written beside, flushed to disk, and renamed once those of all ranks are there.

    Args:
        folder: where the checkpoints of one run live; every rank must see the same folder.
        step: optimizer steps done, at least 0.
    """

    def __init__(self, folder: Path, step: int) -> None:
        if step < 0:
            raise ValueError(f"step is {step}; it must be at least 0")
        self.folder = folder
        self.step = step
        self.beside = folder / f".step-{step:08d}.writing"
        super().__init__(self.beside)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """On every rank, first; not torch's own, which warns of what `prepare_global_plan` clears away."""
        self.beside.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first rank, when all have come to write and none has begun: drops what a killed run left."""
        for abandoned in self.folder.glob(".step-*"):
            if abandoned != self.beside:
                shutil.rmtree(abandoned)
        for left in self.beside.iterdir():
            left.unlink()
        return super().prepare_global_plan(plans)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, when all have written: puts the checkpoint in place and drops the third newest."""
        super().finish(metadata, results)
        final = checkpoint_of(self.folder, self.step)
        if final.exists():
            _remove(final)
        _sync_folder(self.beside)
        self.beside.rename(final)
        _sync_folder(self.folder)
        for old in _complete_checkpoints(self.folder)[:-KEPT_CHECKPOINTS]:
            _remove(old)


class BackgroundCheckpoints:
    """Checkpoints of one run, written while it trains on: at most one at a time, from a copy of the state.

    The ranks agree on a checkpoint over a process group of its own, so that its messages don't mix with the
    training's. As a context it waits, at the end of a run and of a failed one, for what is being written.

    Args:
        folder: where the run's checkpoints live; every rank must see the same folder, and make one of these
            within a process group.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._writer: AtomicWriter | None = None
        self._written: Future[Any] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copies `state`, as in `save_checkpoint`, and begins to write it; every rank must call it.

        Raises:
            DataError: the checkpoint before could not be written.
        """
        self.finish()
        self._writer = AtomicWriter(self.folder, step)
        written = async_save(state, storage_writer=self._writer, process_group=self._group)
        assert isinstance(written, Future), "AtomicWriter copies before async_save returns"
        self._written = written

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, if one is; every rank must call it.

        Raises:
            DataError: it could not be written; the ones before are as they were.
        """
        written, self._written = self._written, None
        if written is not None:
            assert self._writer is not None
            with _failure_told(self._writer):
                written.result()

    def __enter__(self) -> BackgroundCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self._written is not None:
            # The run fails for another reason; its process group must not go while a checkpoint uses it.
            wait([self._written])


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `state` as the checkpoint of `step`, all ranks together, and drops all but the newest two.

    Args:
        folder, step: see `AtomicWriter`.
        state: nested dict of tensors (plain, DTensor or ShardedTensor), numbers, strings.

    Returns:
        The folder of the new checkpoint.

    Raises:
        DataError: it could not be written, on any rank (the disk is full, say); older ones are as they were.
    """
    writer = AtomicWriter(folder, step)
    with _single_process_allowed(), _failure_told(writer):
        save(state, storage_writer=writer, no_dist=not has_group())
    return checkpoint_of(folder, step)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`, or None."""
    complete = _complete_checkpoints(folder)
    return complete[-1] if complete else None


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is kept under `folder`."""
    return folder / f"step-{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """The step whose state `checkpoint` (a path from `latest_checkpoint`) holds."""
    match = _STEP_FOLDER.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not a checkpoint folder; its name must be step-NNNNNNNN")
    return int(match.group(1))


def load_checkpoint(checkpoint: Path, state: dict[str, Any]) -> None:
    """Reads `checkpoint` into `state` in place, all ranks together.

    Args:
        checkpoint: a path from `latest_checkpoint` or `save_checkpoint`.
        state: same keys and shapes as the saved one; the number of ranks may differ.
    """
    with _single_process_allowed():
        load(state, storage_reader=FileSystemReader(checkpoint), no_dist=not has_group())


@contextmanager
def _failure_told(writer: AtomicWriter) -> Iterator[None]:
    """Turns what a rank met while it wrote into a `DataError` on all of them, and gives the room back."""
    try:
        yield
    except CheckpointException as failed:
        if is_first_rank():
            shutil.rmtree(writer.beside, ignore_errors=True)
        rank, (error, _) = next(iter(failed.failures.items()))
        if not isinstance(error, OSError | RuntimeError):
            raise
        # Of torch's own file errors the first line says what; what follows is its call stack.
        reason = str(error).partition("\n")[0]
        newest = latest_checkpoint(writer.folder)
        kept = "there is none before it" if newest is None else f"{newest.name} is whole"
        raise DataError(
            f"{checkpoint_of(writer.folder, writer.step)}: process {rank} could not write this checkpoint: "
            f"{reason}; {kept}: make room, then start the same command again"
        ) from failed


def _complete_checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP_FOLDER.fullmatch(path.name)]
    return sorted((path for path in found if (path / _METADATA_FILE).is_file()), key=checkpoint_step)


def _remove(checkpoint: Path) -> None:
    # Renamed first: a kill in the middle of the deletion must not leave something that looks complete.
    hidden = checkpoint.with_name(f".{checkpoint.name}.dropped")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _single_process_allowed() -> Iterator[None]:
    # torch warns on no_dist=True that it assumes a single process, which is what was asked for.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
