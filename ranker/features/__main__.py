"""Make request rows, what co-training reads: `python -m ranker.features --data DIR --release DIR --out DIR`.

The values are those that the server computes of the same requests: it is the same library. A summary of what was
written, skipped and noticed goes to stderr, with the cost; the last line on stdout is one JSON document. A killed
job that is started again makes what is left.
"""

from __future__ import annotations

import json

import tyro

from foundation.errors import run_command
from ranker.rows.job import RowsConfig, make_rows


def main() -> None:
    """The command."""
    print(json.dumps(make_rows(tyro.cli(RowsConfig, prog="python -m ranker.features"))))


if __name__ == "__main__":
    run_command(main)
