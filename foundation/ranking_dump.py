"""What an evaluation ranked, as Parquet, so that anyone can compute its figures again.

One row per tested profile: profile_id, item_id (the tested one), timestamp, rank (1 is first), history_length
(events before the tested one), top_item_ids and top_scores (lists, best first, the history left out). Ids are
those of the data's own files. hr@k is the mean of rank <= k, ndcg@k that of 1 / log2(rank + 1) where rank <= k.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from foundation.atomic import atomic_file
from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.ingestion import Table
from foundation.leave_one_out import LastEvents, Ranking
from foundation.vocabulary import FIRST_KNOWN

NUM_TOP = 200


def check_dump_path(path: Path) -> None:
    """Makes sure, before any work, that a file can be written there.

    Raises:
        DataError: its folder is missing, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise DataError(f"--dump {path}: there is no folder {path.parent}; make it, or choose another file")
    if path.is_dir():
        raise DataError(f"--dump {path}: is a folder; name a file in it")


def write_ranking_dump(
    path: Path, dataset: Dataset, tested: LastEvents, ranking: Ranking, about: Mapping[str, str]
) -> None:
    """Writes the file, all of it or nothing; one that was there is replaced.

    Args:
        path: of the Parquet file.
        dataset: that was evaluated on.
        tested: which events, `[P]`.
        ranking: of them, with the items from the top.
        about: kept in the file's metadata.
    """
    columns, raw = dataset.schema.columns, dataset.events
    events_path, items_path = dataset.folder / "events.parquet", dataset.folder / "items.parquet"
    profile_P = raw.profile_id[np.searchsorted(raw.offsets, tested.first_row, side="right") - 1]
    item_names = _Names(items_path if items_path.exists() else events_path, columns.item_id)
    profile_names = _Names(events_path, columns.profile_id)
    rows_PK = ranking.top_rows.numpy()
    kept_PK = rows_PK >= FIRST_KNOWN
    top_ids = item_names(dataset.catalogue.item_id[rows_PK[kept_PK] - FIRST_KNOWN])
    frame = pl.DataFrame(
        {
            "profile_id": profile_names(profile_P),
            "item_id": item_names(raw.item_id[tested.last_row]),
            "timestamp": raw.timestamp[tested.last_row],
            "rank": ranking.ranks.numpy() + 1,
            "history_length": tested.last_row - tested.first_row,
            "top_item_ids": _lists(top_ids, kept_PK),
            "top_scores": _lists(pl.Series(ranking.top_scores.numpy()[kept_PK]), kept_PK),
        }
    )
    with atomic_file(path) as partial:
        frame.write_parquet(partial, metadata=dict(about))


class _Names:
    """From raw ids back to what a file has: its integers, or its strings."""

    def __init__(self, path: Path, column: str) -> None:
        table = Table(path, [column])
        self._raw, first = np.unique(table.ids(column), return_index=True)
        self._names = table.frame[column].gather(first)

    def __call__(self, raw: np.ndarray) -> pl.Series:
        return self._names.gather(np.searchsorted(self._raw, raw))


def _lists(values: pl.Series, kept_PK: np.ndarray) -> pl.Series:
    """`values`, laid end to end, as one list per row of `kept_PK`."""
    row = np.repeat(np.arange(len(kept_PK)), kept_PK.sum(axis=1))
    groups = pl.DataFrame({"row": row, "value": values}).group_by("row", maintain_order=True).agg("value")
    return groups["value"]
