"""Training checkpoints on torch.distributed.checkpoint: atomic, resumable, the newest two kept.

The metadata file of torch.distributed.checkpoint is pickled, so resume only from a folder of your own; a
release (`foundation.release`) is what travels between people, and holds no pickle.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from foundation.distributed import barrier, has_group, is_first_rank

KEPT_CHECKPOINTS = 2
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_METADATA_FILE = ".metadata"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `state` as the checkpoint of `step`, all ranks together, and drops all but the newest two.

    A killed process leaves a whole checkpoint or an ignored temporary folder, never half of one: the files
    are written beside, flushed to disk, and renamed.

    Args:
        folder: where the checkpoints of one run live; every rank must see the same folder.
        step: optimizer steps done, at least 0.
        state: nested dict of tensors (plain, DTensor or ShardedTensor), numbers, strings.

    Returns:
        The folder of the new checkpoint.
    """
    if step < 0:
        raise ValueError(f"step is {step}; it must be at least 0")
    final = checkpoint_of(folder, step)
    beside = folder / f".step-{step:08d}.writing"
    if is_first_rank():
        shutil.rmtree(beside, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    barrier()
    with _single_process_allowed():
        save(state, storage_writer=FileSystemWriter(beside), no_dist=not has_group())
    barrier()
    if is_first_rank():
        if final.exists():
            _remove(final)
        _sync_folder(beside)
        beside.rename(final)
        _sync_folder(folder)
        for old in _complete_checkpoints(folder)[:-KEPT_CHECKPOINTS]:
            _remove(old)
        for abandoned in folder.glob(".step-*"):
            shutil.rmtree(abandoned)
    barrier()
    return final


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
