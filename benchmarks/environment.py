"""What a figure was measured on: the stamp that goes beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Of the hundred or so that a processor lists, those that decide which code runs.
_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = (
    "torch",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "torchrec",
    "nvidia-pytriton",
    "tritonclient",
    "triton",
    "numpy",
    "onnxruntime",
    "openvino",
)
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "MARQUEE_CPU_CAPABILITY",
)
_CPU_INFO = Path("/proc/cpuinfo")
_ROOT = Path(__file__).resolve().parents[1]


def stamp() -> dict[str, Any]:
    """Processor, flags, threads, versions and commit, as plain values."""
    processor, flags = _processor(_CPU_INFO.read_text(encoding="utf-8"))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor,
        "flags": flags,
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the working tree, with `+changes` where tracked files differ; "unknown" outside a clone."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor(cpu_info: str) -> tuple[str, list[str]]:
    """Model name and the flags that matter, from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpu_info.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", "").split())
    return fields.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in present]


def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
