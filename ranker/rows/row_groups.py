"""The row groups of a folder's training requests, draw by draw, as the loader reads them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError
from ranker.rows.folder import RowFolder, Shard
from ranker.rows.parquet import Widths, read_row_group
from ranker.rows.rows import Rows


class _Place(NamedTuple):
    shard: Shard
    row_group: int


class TrainingRowGroups:
    """Reads row groups by their number within a draw; small, so that it can be sent to worker processes.

    Args:
        folder: of rows.

    Attributes:
        sizes: rows of every row group, by draw.
    """

    def __init__(self, folder: RowFolder) -> None:
        self._widths: Widths = folder.widths
        self._draws = [
            [_Place(shard, n) for shard in folder.shards("train", draw) for n in range(len(shard.row_groups))]
            for draw in range(folder.num_draws)
        ]
        self.sizes: list[NDArray[np.int64]] = [
            np.array([place.shard.row_groups[place.row_group] for place in draw], dtype=np.int64)
            for draw in self._draws
        ]

    def read(self, draw: int, group: int) -> Rows:
        """All rows of a row group.

        Raises:
            DataError: its shard is missing, truncated or changed; names the file and its row group.
        """
        place = self._draws[draw][group]
        rows = read_row_group(place.shard.path, place.row_group, self._widths)
        expected = place.shard.row_groups[place.row_group]
        if len(rows) != expected:
            raise DataError(
                f"{place.shard.path}: row group {place.row_group}: has {len(rows)} requests, manifest.json says"
                f" {expected}; the file was changed, make the rows anew"
            )
        return rows
