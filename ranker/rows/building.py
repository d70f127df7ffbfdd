"""A folder of rows while it is being made: beside its place, unit by unit, so that a killed job goes on where it was.

.NAME.partial/settings.json     what the job was told, and hashes of what it reads
.NAME.partial/units/00000.json  what the unit wrote, once it has written all of it
.NAME.partial/train/.. …        the shards
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foundation.atomic import atomic_file
from ranker.requests.shards import BATCH_REQUESTS
from ranker.rows.making import RowMaker
from ranker.rows.manifest import ShardRecord
from ranker.rows.parquet import Widths
from ranker.rows.sources import Drawn, Unit
from ranker.rows.writing import ShardWriter, requests_per_row_group

SETTINGS, UNITS = "settings.json", "units"


class RowsBuild:
    """The folder that becomes `out`.

    Args:
        out: where the rows go.
        settings: all that the rows come from, as plain values; what another job left half-made is thrown away.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out.absolute()
        self.folder = self.out.with_name(f".{out.name}.partial")
        text = json.dumps(settings, sort_keys=True)
        found = self.folder / SETTINGS
        if not found.is_file() or found.read_text(encoding="utf-8") != text:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.folder / UNITS).mkdir(parents=True)
            with atomic_file(found) as partial:
                partial.write_text(text, encoding="utf-8")

    def done(self, number: int) -> dict[str, Any] | None:
        """What a unit wrote, if it was done by an earlier start."""
        record = self._record(number)
        return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None

    def write(
        self, number: int, unit: Unit, maker: RowMaker, advance: Callable[[int], object]
    ) -> dict[str, Any]:
        """Makes the rows of a unit, writes them, and remembers what was written.

        Args:
            number: of the unit.
            unit: whose requests.
            maker: of rows.
            advance: told how many requests were written.

        Returns:
            `shards` by folder, `widths`, and counts: by part, and those of the unit's tally.
        """
        writers: dict[str, ShardWriter] = {}
        counts: Counter[str] = Counter()
        widths: Widths | None = None
        for drawn in unit.drawn():
            if not len(drawn.requests.profile):
                continue
            folder = _folder(drawn)
            if folder not in writers:
                sizes = unit.per_row_group
                size = (
                    requests_per_row_group(len(drawn.requests.profile))
                    if sizes is None
                    else sizes[drawn.part]
                )
                writers[folder] = ShardWriter(self.folder, f"{folder}/part-{number:05d}.parquet", size)
            for first in range(0, len(drawn.requests.profile), BATCH_REQUESTS):
                last = min(first + BATCH_REQUESTS, len(drawn.requests.profile))
                rows = maker.rows(drawn.requests.take(np.arange(first, last)))
                writers[folder].add(rows)
                widths = Widths.of(rows)
                counts.update(
                    {
                        f"{folder} requests": len(rows),
                        f"{folder} candidates": len(rows.item_rows),
                        f"{folder} unknown candidates": int((rows.item_rows == 0).sum()),
                    }
                )
                advance(len(rows))
        shards = {folder: asdict(writer.close()) for folder, writer in writers.items()}
        told = unit.tally()
        record = {
            "shards": shards,
            "widths": None if widths is None else asdict(widths),
            "rows": dict(counts),
            **told,
        }
        with atomic_file(self._record(number)) as partial:
            partial.write_text(json.dumps(record), encoding="utf-8")
        return record

    def finish(self) -> None:
        """Puts the folder in its place; everything is written."""
        shutil.rmtree(self.folder / UNITS)
        (self.folder / SETTINGS).unlink()
        self.folder.rename(self.out)

    def _record(self, number: int) -> Path:
        return self.folder / UNITS / f"{number:05d}.json"


def shards_of(records: list[dict[str, Any]], folder: str) -> tuple[ShardRecord, ...]:
    """The shards that units wrote to a folder, in the order of the units."""
    found = (record["shards"][folder] for record in records if folder in record["shards"])
    return tuple(ShardRecord(each["file"], tuple(each["row_groups"]), each["sha256"]) for each in found)


def total(records: list[dict[str, Any]], name: str) -> dict[str, int]:
    """Counts of all records together, names in order."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.get(name, {}))
    return {key: counts[key] for key in sorted(counts) if counts[key]}


def draw_folder(draw: int) -> str:
    """Where the training requests of a draw are."""
    return f"train/draw-{draw:03d}"


def _folder(drawn: Drawn) -> str:
    return draw_folder(drawn.draw) if drawn.part == "train" else drawn.part
