"""Rows onto disk: a shard of row groups of equal size."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foundation.atomic import flush
from foundation.manifest import file_hash
from ranker.rows.manifest import ShardRecord
from ranker.rows.parquet import to_table
from ranker.rows.rows import Rows

LEAST_ROW_GROUPS = 64
MOST_REQUESTS = 512
"""Of a row group: what a loader reads at once, and shuffles within."""


def requests_per_row_group(num_requests: int) -> int:
    """Requests of a row group, so that a draw has at least `LEAST_ROW_GROUPS` of them where it has the requests."""
    return min(max(num_requests // LEAST_ROW_GROUPS, 1), MOST_REQUESTS)


class ShardWriter:
    """Writes one Parquet file.

    Args:
        folder: of the rows.
        file: path within it.
        per_row_group: requests of a row group; the last one has the rest.
    """

    def __init__(self, folder: Path, file: str, per_row_group: int) -> None:
        self.folder, self.file, self.per_row_group = folder, file, per_row_group
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._row_groups: list[int] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: Rows) -> None:
        """Some more requests."""
        self._waiting.append(to_table(rows))
        self._num_waiting += len(rows)
        if self._num_waiting >= self.per_row_group:
            self._write(self._num_waiting - self._num_waiting % self.per_row_group)

    def close(self) -> ShardRecord:
        """Writes what is left, and says what the file holds; at least one request was added."""
        if self._num_waiting:
            self._write(self._num_waiting)
        assert self._writer is not None, self.file
        self._writer.close()
        # A unit that is said to be done isn't made again: its rows must be on disk before that is said.
        flush(self.folder / self.file)
        return ShardRecord(self.file, tuple(self._row_groups), file_hash(self.folder / self.file))

    def _write(self, num_requests: int) -> None:
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            path = self.folder / self.file
            path.parent.mkdir(parents=True, exist_ok=True)
            # Checksums: Parquet's own encodings take many a changed byte for another value.
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True)
        for first in range(0, num_requests, self.per_row_group):
            part = table.slice(first, min(self.per_row_group, num_requests - first))
            self._writer.write_table(part, row_group_size=part.num_rows)
            self._row_groups.append(part.num_rows)
        rest = table.slice(num_requests)
        self._waiting, self._num_waiting = [rest] if rest.num_rows else [], rest.num_rows
