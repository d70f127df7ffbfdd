"""Where Triton Server and its Python backend are, and the environment they need.

The server comes from the `nvidia-pytriton` wheel, which holds it as plain files, or from a path of one's own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.threads import SPIN_VARIABLE, VARIABLE, spin_count

WHEEL = "pytriton"
STUB = "triton_python_backend_stub"


class LaunchError(RuntimeError):
    """The server did not start, or does not answer as it should."""


class ServerFilesError(LaunchError):
    """Triton Server, or a part of it, is not where it should be."""


@dataclass(frozen=True)
class ServerFiles:
    """What is needed to start a server.

    Attributes:
        program: the `tritonserver` executable.
        backends: folder of backends; None for the server's own default.
        libraries: folders for the dynamic loader, to be searched first.
    """

    program: Path
    backends: Path | None
    libraries: tuple[Path, ...]

    def environment(self, base: Mapping[str, str], threads: int) -> dict[str, str]:
        """`base` with what the server and its Python processes need.

        The Python backend's interpreter finds its packages by the first `python3` on PATH and ignores PYTHONPATH.
        Idle compute threads spin briefly and then sleep, for as long as `base` says or as training's do; libgomp
        takes this over any OMP_WAIT_POLICY. Sleeping at once (PASSIVE) was slower: with 2 threads, one caller and
        a small model on a shared 2-core machine, the median of 300 calls was 4.9 and 5.1 ms, against 3.6 and 3.8.
        """
        paths = [str(path) for path in self.libraries]
        if base.get("LD_LIBRARY_PATH"):
            paths.append(base["LD_LIBRARY_PATH"])
        return {
            **base,
            VARIABLE: str(threads),
            SPIN_VARIABLE: spin_count(base),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": os.pathsep.join(paths),
        }


def files_of_wheel(folder: Path) -> ServerFiles:
    """The wheel's server, with its Python backend put together in `folder`.

    Raises:
        ServerFilesError: the wheel is not installed, or has no stub for this Python.
    """
    # Found, not imported: the package would start to configure itself.
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise ServerFilesError(
            "Triton Server is not installed: pip install --no-deps nvidia-pytriton, or name a tritonserver"
        )
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise ServerFilesError(
            f"{stub}: not found; the wheel's Python backend does not serve Python {version}"
        )
    backends = folder / "backends"
    shutil.copytree(root / "backends", backends, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, backends / "python" / STUB)
    # Python's own libpython first: another one of the same version would come without this one's packages.
    libraries = (Path(sysconfig.get_config_var("LIBDIR")), package.parent / "nvidia_pytriton.libs")
    return ServerFiles(root / "bin" / "tritonserver", backends, libraries)


def files_of_program(program: Path) -> ServerFiles:
    """One's own server; its Python backend must be built for this Python version.

    Raises:
        ServerFilesError: there is no such executable.
    """
    program = program.absolute()
    if not os.access(program, os.X_OK) or program.is_dir():
        raise ServerFilesError(f"{program}: not an executable tritonserver")
    backends = program.parent.parent / "backends"
    return ServerFiles(program, backends if backends.is_dir() else None, ())
