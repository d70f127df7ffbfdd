"""The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer, once for each path of this processor.

    make sanitize                        all of tests/kernels that runs C++
    make sanitize ARGS="-k interaction"  arguments of pytest

Builds the whole package beside the sources, in build/sanitize, with the extension instrumented; the one that is used
otherwise stays as it is. Exits with 1 on the first finding of either sanitizer, and where a test fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "package"
# libstdc++ is preloaded too: AddressSanitizer looks for its __cxa_throw as it starts, before Python loads any C++.
RUNTIMES = ("libasan.so", "libstdc++.so")
ASK = """
import sys
from serving.kernels.extension import cpu_capability
print(cpu_capability(), sys.modules["serving.kernels._C"].__file__)
"""


def main() -> int:
    build()
    environment = sanitized_environment()
    command = [sys.executable, "-c", ASK]
    told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    best, extension = told.split()
    assert Path(extension).is_relative_to(PACKAGE), f"{extension} is not the instrumented extension"
    paths = ["baseline", "avx2", "avx512", "avx512_vnni", "amx"]
    for path in paths[: paths.index(best) + 1]:
        print(f"sanitize: {path}", flush=True)
        code = run_tests({**environment, "MARQUEE_CPU_CAPABILITY": path}, sys.argv[1:])
        if code:
            print(f"sanitize: a finding, or a failed test, on {path}", file=sys.stderr)
            return 1
    print(f"sanitize: nothing found on {', '.join(paths[: paths.index(best) + 1])}")
    return 0


def build() -> None:
    """Compile what changed, and copy the Python files afresh."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    folders = ["--build-lib", str(PACKAGE), "--build-temp", str(BUILD / "objects")]
    command = [sys.executable, "setup.py", "--quiet", "build_py", *folders[:2], "build_ext", *folders]
    environment = {**os.environ, "MARQUEE_SANITIZE": "1"}
    print("sanitize: building in build/sanitize", flush=True)
    told = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd=ROOT)
    if told.returncode:
        raise SystemExit(f"{told.stdout[-4000:]}{told.stderr[-4000:]}\nsanitize: building failed, see above")


def sanitized_environment() -> dict[str, str]:
    """That of a process, and of what it starts, which imports the built package and never the sources."""
    runtimes = [_runtime(name) for name in RUNTIMES]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Python keeps memory until it ends, so that leaks say nothing.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(PACKAGE),
        "PYTHONSAFEPATH": "1",
    }


def _runtime(name: str) -> str:
    """The compiler's own library of that name."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    path = Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    if not path.is_absolute():
        raise SystemExit(f"sanitize: {command[0]} has no {name} (Debian: libgcc-*-dev, libstdc++-*-dev)")
    return str(path.resolve())


def run_tests(environment: dict[str, str], arguments: list[str]) -> int:
    """The exit code of pytest. Its capture leaves file descriptor 2 alone, where the sanitizers write as they abort."""
    tests = ["tests/kernels", "--ignore-glob=*_gpu.py", "--ignore-glob=*/test_instruction_sets.py"]
    options = ["-o", f"pythonpath={PACKAGE}", "--capture=sys", "-p", "no:cacheprovider", "-q", "-x"]
    command = [sys.executable, "-m", "pytest", *options, *tests, *arguments]
    return subprocess.run(command, env=environment, check=False, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
