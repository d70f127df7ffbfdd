"""Export a trained ranker as a model repository for Triton Server.

    python -m serving.export --ranker RUN/ranker --out RUN/repository

The last line printed is one JSON document with the repository, the mode and the measured parity.
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
    mode = check_files(config.out / MODEL / VERSION)["mode"]
    print(json.dumps({"repository": str(config.out), "mode": mode, "parity": asdict(parity)}))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(ExportConfig)))
