"""The catalogue of a dataset folder: `items.parquet`.

Shapes: N events, I items of the catalogue, M = max_values of a multi-valued feature, E width of content embeddings.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.ingestion import Table
from foundation.raw_values import NO_VALUE
from foundation.schema import Schema

logger = logging.getLogger(__name__)
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Catalogue:
    """Every item that can be recommended, in the file's order.

    Attributes:
        item_id: raw id, int64 `[I]`, unique.
        features: raw values by feature name, `[I]` or `[I, M]`.
        titles: what people call each item; its id where the data have no title.
        launched_at: unix seconds, int64 `[I]`, `NO_VALUE` where unknown; None where the schema names no column.
        content_embedding: float32 `[I, E]`, zeros where there is none; None where the schema names no column.
    """

    item_id: np.ndarray
    features: dict[str, np.ndarray]
    titles: list[str]
    launched_at: np.ndarray | None = None
    content_embedding: np.ndarray | None = None


def read_catalogue(
    path: Path, schema: Schema, item_id: np.ndarray, timestamp: np.ndarray, event_table: Table
) -> Catalogue:
    """items.parquet, or, where it is missing and nothing needs it, the events' items by first appearance.

    Args:
        path: of items.parquet.
        schema: which columns it has.
        item_id: raw ids of every event, int64 `[N]`.
        timestamp: unix seconds of every event, int64 `[N]`.
        event_table: which the events were read from.

    Raises:
        DataError: a column or value isn't as it should be.
    """
    columns, features = schema.columns, schema.item_features
    optional = [columns.title, columns.launched_at, columns.content_embedding]
    needed = [*filter(None, optional), *(feature.column for feature in features)]
    if not path.exists() and not needed:
        first = np.sort(np.unique(item_id, return_index=True)[1])
        return Catalogue(item_id[first], {}, event_table.names(columns.item_id, first))
    table = Table(path, [columns.item_id, *needed])
    catalogue_id = table.ids(columns.item_id)
    check_unique(table, columns.item_id, catalogue_id)
    unknown = ~np.isin(item_id, catalogue_id)
    if unknown.all():
        raise table.fail(
            columns.item_id, "holds none of the events' items; are both integers, or both strings?"
        )
    if unknown.any():
        logger.warning(
            "%s: %d events of %d items that are not in column %r count as out of vocabulary",
            *(path, unknown.sum(), len(np.unique(item_id[unknown])), columns.item_id),
        )
    names = table.names(columns.item_id)
    if columns.title:
        names = [title or name for title, name in zip(table.names(columns.title), names, strict=True)]
    catalogue = Catalogue(
        catalogue_id,
        {feature.name: table.feature(feature) for feature in features},
        names,
        table.timestamps(columns.launched_at, nullable=True) if columns.launched_at else None,
        table.embeddings(columns.content_embedding) if columns.content_embedding else None,
    )
    _warn_of_early_events(table, schema, catalogue, item_id, timestamp)
    return catalogue


def _warn_of_early_events(
    table: Table, schema: Schema, catalogue: Catalogue, item_id: np.ndarray, timestamp: np.ndarray
) -> None:
    """One warning that counts the events before their item's launch, whose age counts as 0."""
    if catalogue.launched_at is None:
        return
    order = np.argsort(catalogue.item_id, kind="stable")
    place = np.searchsorted(catalogue.item_id, item_id, sorter=order)
    item = order[np.minimum(place, len(order) - 1)]
    launched_at = np.where(catalogue.item_id[item] == item_id, catalogue.launched_at[item], NO_VALUE)
    early = np.flatnonzero(timestamp < launched_at)
    if len(early):
        row = early[0]
        logger.warning(
            "%s: column %r: %d events come before their item's launch, whose age counts as 0 then; "
            "the first is event %d, %.1f days before the launch of %r",
            *(table.path, schema.columns.launched_at, len(early), row),
            *((launched_at[row] - timestamp[row]) / SECONDS_PER_DAY, catalogue.titles[item[row]]),
        )


def check_unique(table: Table, column: str, ids: np.ndarray) -> None:
    """Refuses a column of ids that holds one of them twice."""
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        row = np.flatnonzero(ids == values[counts > 1][0])[1]
        raise table.fail(
            column, f"duplicate: row {row} has the id of an earlier row; every row needs its own"
        )
