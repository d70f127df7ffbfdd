"""Titles that training never meets: a draw of them, and the dataset folder without their events.

Shapes: N events, I item rows (0 out of vocabulary, 1 start marker, then the catalogue).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from foundation.atomic import atomic_folder
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.run_record import data_hash
from foundation.sources.folder import SOURCE_FILE, is_written
from foundation.vocabulary import FIRST_KNOWN

LAYOUT_VERSION = 1
"""To raise when the same draw would leave another folder: an old one is not taken for a new one."""


def draw_titles(num_titles: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Draws `share` of the catalogue's titles, each as likely as any other, however popular it is.

    Returns:
        Bool `[I]`, by item row: the title is cold; false for the two special rows.

    Raises:
        DataError: it would be none of them, or all.
    """
    num_cold = round(share * num_titles)
    if not 0 < num_cold < num_titles:
        raise DataError(
            f"--share is {share}: {num_cold} of {num_titles} titles; it must leave some in and take some out"
        )
    is_cold = np.zeros(FIRST_KNOWN + num_titles, dtype=bool)
    is_cold[FIRST_KNOWN + np.random.default_rng(seed).choice(num_titles, num_cold, replace=False)] = True
    return is_cold


def write_without(dataset: Dataset, is_cold: NDArray[np.bool_], seed: int, out: Path) -> Dataset:
    """Writes `dataset` without the events of the cold titles, all of it or nothing; one that is there is reused.

    items.parquet keeps every title, and split.json is the same, so that the same profiles are held out. A profile
    with events of cold titles alone is gone.

    Args:
        dataset: with every title.
        is_cold: bool `[I]`, from `draw_titles`.
        seed: that it was drawn with, for the record.
        out: the folder; new, empty, or of this very draw.

    Raises:
        DataError: `out` holds something else; or there is no item file, whose titles are to be told apart.
    """
    source = {
        "source": "titles taken out",
        "of": data_hash(dataset),
        "titles": int(is_cold.sum()),
        "seed": seed,
        "version": LAYOUT_VERSION,
    }
    if is_written(out, source):
        return load_dataset(out)
    if out.exists():
        out.rmdir()
    columns = dataset.schema.columns
    with atomic_folder(out) as partial:
        for name in ("items.parquet", "profiles.parquet", "schema.toml", "split.json"):
            if (dataset.folder / name).exists():
                shutil.copyfile(dataset.folder / name, partial / name)
        if not (partial / "items.parquet").exists():
            raise DataError(
                f"{dataset.folder / 'items.parquet'}: not found; a title without events is known by what it is"
            )
        ids = pl.read_parquet(partial / "items.parquet", columns=[columns.item_id]).to_series()
        cold = ids.filter(pl.Series(is_cold[FIRST_KNOWN:]))
        events = pl.read_parquet(dataset.folder / "events.parquet")
        kept = events.filter(~pl.col(columns.item_id).is_in(cold.implode()))
        kept.write_parquet(partial / "events.parquet")
        (partial / SOURCE_FILE).write_text(json.dumps(source, indent=1, sort_keys=True), encoding="utf-8")
        # A dataset that wouldn't load never takes its place.
        load_dataset(partial)
    return load_dataset(out)
