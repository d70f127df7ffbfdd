"""Says in one line each what this machine lacks, before anything is installed.

Runs with the standard library alone, and on Pythons older than the one it asks for.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

PYTHON = (3, 11)  # the one that was tried; the server's wheel embeds an interpreter of the same version
GLIBC = (2, 35)  # what the wheel with the Triton Server was built against


def missing() -> list[str]:
    """One line for everything this machine and the running Python lack; empty if nothing."""
    checks = [_system(), _python(), _headers(), _shared_library(), _pip(), _compiler()]
    return [line for line in checks if line]


def _system() -> str | None:
    found = platform.system() + " " + platform.machine()
    if found != "Linux x86_64":
        return f"Linux on x86-64 is needed; this is {found}"
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "no glibc").partition(" ")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < GLIBC:
        return f"glibc {_dotted(GLIBC)} or newer is needed; this system has {name} {version}".rstrip()
    return None


def _python() -> str | None:
    if sys.version_info[:2] != PYTHON:
        return (
            f"Python {_dotted(PYTHON)} is needed; {sys.executable} is {platform.python_version()} "
            f"(another one: make PYTHON=/path/to/python{_dotted(PYTHON)})"
        )
    return None


def _headers() -> str | None:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"Python.h is needed to build the kernels; there is no {header} (Debian: python3-dev)"
    return None


def _shared_library() -> str | None:
    name = str(sysconfig.get_config_var("INSTSONAME"))
    folders = [str(sysconfig.get_config_var("LIBDIR")), str(Path(sys.base_prefix) / "lib")]
    if ".so" not in name or not any((Path(folder) / name).is_file() for folder in folders):
        return (
            f"a shared libpython is needed by the Triton Server; {sys.executable} has none in {folders[0]} "
            "(Debian: libpython3-dev; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )
    return None


def _pip() -> str | None:
    if importlib.util.find_spec("ensurepip") is None and importlib.util.find_spec("pip") is None:
        return (
            f"pip in virtual environments is needed; {sys.executable} has no ensurepip (Debian: python3-venv)"
        )
    return None


def _compiler() -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"g++ is needed to build the kernels; there is no {compiler} on PATH (Debian: g++)"
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(str(part) for part in version)
