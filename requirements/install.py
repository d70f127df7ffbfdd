"""Creates .venv, installs the pinned requirements and builds the extension; does nothing when nothing changed.

    python requirements/install.py run     what the demo needs
    python requirements/install.py test    and what the tests need

`MARQUEE_REQUIREMENTS=gpu` takes gpu.txt instead of cpu.txt. pip reads its configuration and PIP_* variables as ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from check import missing

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "marquee-set-up.json"  # what was installed here: a hash of what each step depends on
LARGE = (" MB)", " GB)")


def main() -> int:
    stage, machine = sys.argv[1], os.environ.get("MARQUEE_REQUIREMENTS", "cpu")
    if machine not in ("cpu", "gpu"):
        return _fail(f"MARQUEE_REQUIREMENTS is '{machine}'; it must be cpu or gpu")
    steps = _steps(machine, with_tests=stage == "test")
    done = _read_stamp()
    todo = [name for name in steps if done.get(name) != steps[name][0]]
    if not todo:
        return 0

    lines = missing()
    if lines:
        return _fail(*lines)
    if not PYTHON.exists():
        print(f"set-up: creating {VENV.name} with {sys.executable}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode:
            return _fail(f"creating {VENV.name} failed, see above")
    for name in todo:
        _, arguments = steps[name]
        if not _pip_install(name, arguments):
            return _fail(f"installing the {name} failed, see above")
        done[name] = steps[name][0]
        STAMP.write_text(json.dumps(done, indent=1) + "\n")
    return 0


def _steps(machine: str, with_tests: bool) -> dict[str, tuple[str, list[str]]]:
    """Name -> (hash of what the step depends on, arguments of pip install), in the order they are installed."""
    files = {
        name: REQUIREMENTS / f"{name}.txt"
        for name in ("base", "constraints", machine, "no-deps", "dev", "content", "hugging_face", "peers")
    }
    held = ["-c", str(files["constraints"])]
    packages = _hash(files["base"], files["constraints"], files[machine], files["no-deps"])
    sources = sorted([*ROOT.glob("serving/kernels/**/*.cpp"), *ROOT.glob("serving/kernels/**/*.h")])
    extension = _hash(ROOT / "setup.py", ROOT / "pyproject.toml", *sources) + packages + str(ROOT)
    steps = {
        "packages": (packages, ["-r", str(files[machine]), *held]),
        "packages without their dependencies": (packages, ["--no-deps", "-r", str(files["no-deps"])]),
        "extension": (extension, ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]),
    }
    if with_tests:
        steps["test packages"] = (
            _hash(files["dev"], files["hugging_face"], files["peers"]) + packages,
            ["-r", str(files["dev"]), *held],
        )
        steps["sentence encoder"] = (_hash(files["content"]), ["--no-deps", "-r", str(files["content"])])
    return steps


def _pip_install(name: str, arguments: list[str]) -> bool:
    """Install, showing one line for each large download; on failure, the end of what pip said."""
    print(f"set-up: installing the {name}", flush=True)
    begin = time.monotonic()
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar=off",
        *arguments,
    ]
    tail: deque[str] = deque(maxlen=40)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if line.strip().endswith(LARGE) or "WARNING" in line:
                print(f"  {line.strip()}", flush=True)
            tail.append(line)
    if pip.returncode:
        print("".join(tail), end="", flush=True)
        return False
    print(f"set-up: the {name}: done in {time.monotonic() - begin:.0f} s", flush=True)
    return True


def _read_stamp() -> dict[str, str]:
    if not (PYTHON.exists() and STAMP.exists()):
        return {}
    done = json.loads(STAMP.read_text())
    if not list(ROOT.glob("serving/kernels/_C*.so")):
        done.pop("extension", None)
    return done


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _fail(*lines: str) -> int:
    for line in lines:
        print(f"set-up: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
