"""Several vocabularies in one embedding table.

row 0        padding: "no value"; its embedding stays zero
rows 1 ..    the first vocabulary: its row 0 (out of vocabulary), row 1 (start marker), its known values
then         the second vocabulary, and so on
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

PADDING_ROW = 0


class JointTable:
    """Offsets of vocabularies laid end to end behind one padding row, so that one lookup embeds many columns.

    Args:
        num_rows_of: rows of each vocabulary by name, in the order in which they lie.

    Attributes:
        num_rows: rows of the whole table, padding included.
    """

    def __init__(self, num_rows_of: Mapping[str, int]) -> None:
        self._first_row: dict[str, int] = {}
        self._num_rows_of = dict(num_rows_of)
        self.num_rows = PADDING_ROW + 1
        for name, num_rows in num_rows_of.items():
            self._first_row[name] = self.num_rows
            self.num_rows += num_rows

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Joint rows of one vocabulary's ids, of the same shape; -1 ("no value") becomes the padding row."""
        return np.where(ids < 0, PADDING_ROW, ids + self._first_row[name])

    def row(self, name: str, id_: int) -> int:
        """Joint row of one known id (>= 0)."""
        return self._first_row[name] + id_

    def ids(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `rows`: one vocabulary's ids of joint rows, -1 for the padding row.

        Raises:
            ValueError: a row belongs to another vocabulary.
        """
        ids = np.where(rows == PADDING_ROW, -1, rows - self._first_row[name])
        wrong = (rows != PADDING_ROW) & ((ids < 0) | (ids >= self._num_rows_of[name]))
        if wrong.any():
            raise ValueError(f"row {np.asarray(rows)[wrong][0]} of the joint table is none of {name!r}")
        return ids
