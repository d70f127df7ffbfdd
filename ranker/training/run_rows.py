"""The request rows of a co-training run: those it was given, or made first, of a dataset."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from foundation.distributed import by_first_rank
from foundation.errors import DataError
from foundation.release import Release
from ranker.rows.folder import RowFolder
from ranker.rows.job import RowsConfig, make_rows
from ranker.training.cotrain_config import CotrainConfig


def open_rows(folder: Path, release: Release) -> RowFolder:
    """Opens rows that were made with `release`.

    Raises:
        DataError: they are damaged or incomplete, or were made with another release.
    """
    rows = RowFolder.open(folder)
    made_with, given = rows.manifest.release, release.manifest
    if made_with.version != given.version:
        raise DataError(
            f"{folder / 'manifest.json'}: release.version is {made_with.version}; the release given is {given.version}:"
            " give the release that the rows were made with, or make them again"
        )
    if made_with.cut != given.trained_on.cut:
        raise DataError(
            f"{folder / 'manifest.json'}: release.cut is {asdict(made_with.cut)}; the release was trained with"
            f" {asdict(given.trained_on.cut)}: make the rows again"
        )
    return rows


def rows_of_run(config: CotrainConfig, release: Release) -> RowFolder:
    """The rows of `config.rows`, or of `config.data`, made in the run's folder; every rank must call it.

    Raises:
        DataError: see `open_rows`; or data or release are wrong or don't fit each other.
    """
    if config.rows is not None:
        return open_rows(config.rows, release)
    folder = config.out / "rows"
    by_first_rank(lambda: _make(config, folder))
    return open_rows(folder, release)


def _make(config: CotrainConfig, folder: Path) -> None:
    assert config.data is not None
    make_rows(
        RowsConfig(
            config.data,
            config.release,
            folder,
            seed=config.seed,
            draws=config.draws,
            requests=config.requests,
            logged=config.logged,
        )
    )
