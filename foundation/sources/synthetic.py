"""The synthetic world as a dataset folder: `python -m foundation.sources.synthetic --out DIR`.

Besides the usual files it writes `requests.parquet` (impressions, positions, labels) and `truth.parquet` (for
each impression the probability that the profile, seeing it, watches it, and the probability that it is seen).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tyro

from foundation.dataset import Dataset, load_dataset
from foundation.errors import run_command
from foundation.home import home
from foundation.sources.folder import is_written, summary, write_folder
from foundation.sources.synthetic_schema import SCHEMA_TOML
from foundation.sources.synthetic_sessions import simulate
from foundation.sources.synthetic_tables import (
    draw_item_ids,
    events_table,
    items_table,
    profiles_table,
    requests_tables,
)
from foundation.sources.synthetic_world import SyntheticConfig, draw_items, draw_viewers

WORLD_VERSION = 3
"""To raise when the same config makes another world: an old folder is not taken for a new one."""


@dataclass(frozen=True)
class Command:
    """Writes the seeded synthetic world.

    Attributes:
        out: folder to write to, new or empty; one that holds this very world is reused.
        world: its size and seed.
    """

    out: Path = field(default_factory=lambda: home() / "data" / "synthetic")
    world: tyro.conf.OmitArgPrefixes[SyntheticConfig] = field(default_factory=SyntheticConfig)


def write_synthetic(out: Path, config: SyntheticConfig) -> Dataset:
    """Writes the world to `out` and loads it; a folder that already holds this very world is reused.

    Raises:
        DataError: the folder holds something else.
    """
    source = {"source": "synthetic", "version": WORLD_VERSION, **asdict(config)}
    if is_written(out, source):
        return load_dataset(out)
    rng = np.random.default_rng(config.seed)
    items, viewers = draw_items(config, rng), draw_viewers(config, rng)
    requests = simulate(config, items, viewers, rng)
    item_id = draw_item_ids(config.items, rng)
    tables = {
        "events": events_table(requests, items, viewers, item_id, rng),
        "items": items_table(items, item_id),
        "profiles": profiles_table(viewers),
        **requests_tables(requests, item_id),
    }
    return write_folder(out, source, SCHEMA_TOML, tables)


def main() -> None:
    """The command."""
    command = tyro.cli(Command)
    dataset = write_synthetic(command.out, command.world)
    print(f"synthetic world in {command.out}")
    print(json.dumps(summary(dataset)))


if __name__ == "__main__":
    run_command(main)
