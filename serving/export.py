"""Export a trained ranker as a model repository for Triton Server.

    python -m serving.export --ranker RUN/ranker --out RUN/repository

It prints which parts run in fused operators; the last line is one JSON document with the repository, the mode, the
measured parity and those parts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import tyro

from foundation.errors import run_command
from foundation.library_notices import library_notices_off
from serving.contract import MODEL
from serving.model_folder import VERSION, check_files
from serving.parity import ParityError
from serving.repository import ExportConfig, export_repository


def main(config: ExportConfig) -> None:
    """Export, and print one JSON document."""
    try:
        with library_notices_off():
            parity = export_repository(config)
    except ParityError as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        raise SystemExit(1) from None
    manifest = check_files(config.out / MODEL / VERSION)
    kernels = manifest["kernels"]
    for part, operator in kernels["fused"].items():
        print(f"{part}: fused, {operator}")
    for part, reason in kernels["not_fused"].items():
        print(f"{part}: not fused; {reason}")
    document = {"mode": manifest["mode"], "parity": asdict(parity), "kernels": kernels}
    print(json.dumps({"repository": str(config.out), **document}))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(ExportConfig)))
