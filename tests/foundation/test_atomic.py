"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.atomic import atomic_file, atomic_folder


def write_half_a_file(path: Path) -> None:
    with atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError("interrupted")


def write_a_folder(path: Path, fails: bool) -> None:
    with atomic_folder(path) as partial:
        (partial / "events").write_text("new")
        if fails:
            raise RuntimeError("interrupted")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_file(path) as partial:
        partial.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"):
        write_half_a_file(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        write_a_folder(tmp_path / "data", fails=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("kept")
    with pytest.raises(OSError, match="not empty"):
        write_a_folder(tmp_path / "data", fails=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine"]


def test_a_new_folder_holds_what_was_written(tmp_path: Path) -> None:
    write_a_folder(tmp_path / "data", fails=False)
    assert (tmp_path / "data" / "events").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
