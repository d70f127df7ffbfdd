"""Files and folders that are either there in full or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it replaces `path` when the block ends well, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of this process's own, so that two writers of one file never share a half-written one.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`; when the block ends well it becomes `path`, else it is removed.

    Raises:
        OSError: `path` is a folder with something in it; nothing of a user's is ever replaced.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    # A killed process may have left one, and in a container the same number comes round again.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                flush(file)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush(path: Path) -> None:
    """Puts a file's bytes on disk before its name changes: a power cut leaves no empty file behind."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
