"""Set-up says what a machine lacks before it installs anything, and installs nothing that isn't pinned."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", REQUIREMENTS / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_missing_where_the_tests_run(check: ModuleType) -> None:
    assert check.missing() == []


def test_each_missing_thing_is_one_line(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 1))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.31")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "libpython3.8.a")
    monkeypatch.setenv("CXX", "no-such-compiler")
    lines = check.missing()
    wanted = [
        "glibc 2.35 or newer .* glibc 2.31",
        "Python 3.11 ",
        r"Python\.h ",
        "shared libpython ",
        "no-such-compiler",
    ]
    assert len(lines) == len(wanted)
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.search(pattern, line)
        assert "\n" not in line


def test_a_static_python_is_told_apart(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = sysconfig.get_config_var
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: str(tmp_path) if name == "LIBDIR" else real(name)
    )
    assert ["shared libpython" in line for line in check.missing()] == [True]


def test_nothing_is_installed_where_something_is_missing(tmp_path: Path) -> None:
    shutil.copytree(REQUIREMENTS, tmp_path / "requirements")
    shutil.copy(REQUIREMENTS.parent / "setup.py", tmp_path)
    shutil.copy(REQUIREMENTS.parent / "pyproject.toml", tmp_path)
    result = subprocess.run(
        [sys.executable, "requirements/install.py", "run"],
        cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "set-up: g++ is needed to build the kernels; there is no g++ on PATH (Debian: g++)"
    ]
    assert not (tmp_path / ".venv").exists()


def test_every_requirement_is_pinned() -> None:
    for path in REQUIREMENTS.glob("*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            requirement = line.partition("#")[0].strip()
            assert not requirement or requirement.startswith("-r ") or "==" in requirement, (
                f"{path.name}: {line}"
            )
