"""What lies in a served model's version folder, and the check that it is what export wrote.

contract.json        inputs, outputs, limits (`serving.contract`)
schema.json, vocab.json, features.json [, recent_items.safetensors]   (`ranker.features.files`)
profile.pt2, profile.safetensors, candidate.pt2, candidate.safetensors   (`serving.programs`)
sample_request.json, sample_answer.json   a request as the client reads it, and the right answer
model.py             what Triton Server's Python backend runs
manifest.json        hash of every other file, mode, origin, parity, kernels
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundation.errors import DataError
from foundation.manifest import file_hash

VERSION = "1"
"""The version folder that export writes, and the server serves."""
CONTRACT, MODEL_SOURCE, MANIFEST = "contract.json", "model.py", "manifest.json"
PROFILE_PROGRAM, PROFILE_WEIGHTS = "profile.pt2", "profile.safetensors"
CANDIDATE_PROGRAM, CANDIDATE_WEIGHTS = "candidate.pt2", "candidate.safetensors"
SAMPLE_REQUEST, SAMPLE_ANSWER = "sample_request.json", "sample_answer.json"
FORMAT = 1
"""Of the folder; a reader refuses any other."""


def write_manifest(folder: Path, details: dict[str, Any]) -> None:
    """Write `manifest.json` over all files that are in the folder now."""
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    manifest = {"format": FORMAT, **details, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def check_files(folder: Path) -> dict[str, Any]:
    """Compare every file of a model folder with its manifest; returns the manifest.

    Raises:
        DataError: naming the first file that is missing or differs.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: not found; a model folder of serving.export has one")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: format is {manifest.get('format')!r}; this code reads {FORMAT}")
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: not found, though {MANIFEST} lists it")
        found = file_hash(folder / name)
        if found != expected:
            raise DataError(f"{folder / name}: sha256 is {found}, {MANIFEST} says {expected}; it was changed")
    return manifest
