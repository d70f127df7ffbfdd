"""Compare two rankers on the same test requests: `python -m ranker.compare --first RUN --second RUN`.

Prints one JSON document: both GAUCs, their difference, and its 95 % interval from a paired bootstrap over
profiles.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from foundation.errors import run_command
from ranker.evaluation.bootstrap import compare_dumps
from ranker.evaluation.evaluation import DUMP


@dataclass(frozen=True)
class CompareConfig:
    """The difference is first - second.

    Attributes:
        first: folder of a finished co-training run.
        second: folder of the run it is compared with.
        task: whose GAUC; None for the first of the first run.
        seed: of the bootstrap.
    """

    first: Path
    second: Path
    task: str | None = None
    seed: int = 0


def main() -> None:
    """The command."""
    config = tyro.cli(CompareConfig, prog="python -m ranker.compare")
    print(json.dumps(compare_dumps(config.first / DUMP, config.second / DUMP, config.task, config.seed)))


if __name__ == "__main__":
    run_command(main)
