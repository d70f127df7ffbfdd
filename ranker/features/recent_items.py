"""Bags of a history's newest items and of their features: what the pooled tower reads instead of a decoder.

Shapes: B requests, T history events over the batch, R recent items, I item rows, W id columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ranker.features.columns import SparseField
from ranker.features.item_features import ItemFeatures

PREFIX = "recent_"


class RecentItems:
    """Looks up, for each request, its R newest items and the categorical values (genres) of each.

    Args:
        num_recent: R.
        item_fields: the catalogue's id columns, in their order.
        item_rows: `[I, W]` ids of those columns, -1 where there is no value.

    Attributes:
        fields: the bags, each of R times as many columns as the item field has.
    """

    def __init__(
        self, num_recent: int, item_fields: tuple[SparseField, ...], item_rows: NDArray[np.int64]
    ) -> None:
        if num_recent < 1:
            raise ValueError(f"num_recent is {num_recent}; it must be at least 1")
        self.num_recent = num_recent
        self.item_fields = item_fields
        self.item_rows = item_rows
        self.fields = tuple(
            SparseField(
                PREFIX + field.name, num_recent * field.num_columns, field.num_rows, "mean", field.of_items
            )
            for field in item_fields
        )
        # The row after the last one stands for "no such event": indexing with -1 finds it.
        self._rows = np.pad(item_rows, ((0, 1), (0, 0)), constant_values=-1)

    @classmethod
    def of_catalogue(cls, num_recent: int, items: ItemFeatures) -> RecentItems:
        """Bags of every id column of the catalogue's features, the item's own id first."""
        return cls(num_recent, items.fields, items.sparse.numpy())

    def columns(self, item: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Id columns of B histories.

        Args:
            item: `[T]` item rows, request by request, oldest first.
            offsets: `[B + 1]` of the requests.

        Returns:
            `[B, R * W]`, field by field; -1 where a history has fewer than R events, where an item is unknown
            and where it has no value.
        """
        place = offsets[1:, None] - 1 - np.arange(self.num_recent)
        is_event = place >= offsets[:-1, None]
        recent_BR = np.append(item, -1)[np.where(is_event, place, len(item))]
        ids_BRW = self._rows[recent_BR]
        parts, first = [], 0
        for field in self.item_fields:
            part = ids_BRW[:, :, first : first + field.num_columns]
            parts.append(part.reshape(len(offsets) - 1, -1))
            first += field.num_columns
        return np.concatenate(parts, axis=1)
