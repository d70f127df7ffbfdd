"""A dataset folder in memory: events by profile, the catalogue, profile features, and who is held out.

Shapes: P profiles, N events, I items of the catalogue, M = max_values of a multi-valued facet or feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from foundation.catalogue import Catalogue, check_unique, read_catalogue
from foundation.errors import DataError
from foundation.ingestion import Table
from foundation.merging import Way, merge_facets, merged_offsets, run_starts, way_of
from foundation.protocol import ProtocolName, check_protocol_name
from foundation.raw_values import NO_NUMBER, NO_VALUE
from foundation.schema import Feature, Schema, load_schema
from foundation.split import Split, draw_split, read_split, write_split


@dataclass(frozen=True)
class Events:
    """Every event, profile after profile, each profile's oldest first; equal times keep the file's order.

    Where the schema merges adjacent events, they are the merged ones (`foundation/merging.py`), and so is whatever
    counts events.

    Attributes:
        profile_id: raw id of each profile, int64 `[P]`, in the file's order (not ascending).
        offsets: where each profile's events start, int64 `[P+1]`.
        item_id: raw item id of each event, int64 `[N]`.
        timestamp: unix seconds, int64 `[N]`.
        facets: raw values by facet name, `[N]` or `[N, M]`.
        last_action: unix seconds of each merged event's last action, int64 `[N]`; None where none are merged.
    """

    profile_id: np.ndarray
    offsets: np.ndarray
    item_id: np.ndarray
    timestamp: np.ndarray
    facets: dict[str, np.ndarray]
    last_action: np.ndarray | None = None

    @property
    def over_at(self) -> np.ndarray:
        """Unix seconds of each event's last action, int64 `[N]`."""
        return self.timestamp if self.last_action is None else self.last_action


@dataclass(frozen=True)
class Profiles:
    """The features of the profiles that have events.

    Attributes:
        profile_id: raw id, int64 `[P]`, the same as the events'.
        features: raw values by feature name, `[P]` or `[P, M]`; the missing value where profiles.parquet
            lacks the profile.
    """

    profile_id: np.ndarray
    features: dict[str, np.ndarray]


@dataclass(frozen=True)
class Dataset:
    """All of a dataset folder but its requests, which are the ranker's.

    `protocol` says what is held out of training: profiles of the split, or the last events of every profile.
    """

    folder: Path
    schema: Schema
    events: Events
    catalogue: Catalogue
    profiles: Profiles
    split: Split
    protocol: ProtocolName = "profiles"

    @property
    def profile_ids(self) -> np.ndarray:
        """Raw id of each profile, int64 `[P]`."""
        return self.events.profile_id

    @property
    def offsets(self) -> np.ndarray:
        """Where each profile's events start, int64 `[P+1]`."""
        return self.events.offsets

    @property
    def num_profiles(self) -> int:
        """P, profiles with at least one event."""
        return len(self.events.profile_id)

    @property
    def num_events(self) -> int:
        """N."""
        return len(self.events.item_id)

    @property
    def num_items(self) -> int:
        """I, items of the catalogue."""
        return len(self.catalogue.item_id)


def load_dataset(folder: Path | str, protocol: ProtocolName = "profiles") -> Dataset:
    """Reads and checks a dataset folder; draws `split.json` where it is missing, and never rewrites it.

    An event whose item isn't in items.parquet is kept: its item is out of vocabulary, and one warning counts
    such events.

    Args:
        folder: of events.parquet, items.parquet and schema.toml.
        protocol: what training on it does without, see `foundation.protocol`.

    Raises:
        ValueError: there is no such protocol.
        DataError: a file, column or value isn't as it should be; one line naming file and column.
    """
    check_protocol_name(protocol)
    folder = Path(folder)
    schema = load_schema(folder / "schema.toml")
    events, event_table = _read_events(folder / "events.parquet", schema)
    catalogue = read_catalogue(
        folder / "items.parquet", schema, events.item_id, events.timestamp, event_table
    )
    if schema.merge_adjacent:
        events = _merged(events, schema)
    profiles = _read_profiles(folder / "profiles.parquet", schema, events)
    return Dataset(
        folder, schema, events, catalogue, profiles, _read_split(folder / "split.json", events), protocol
    )


def _read_events(path: Path, schema: Schema) -> tuple[Events, Table]:
    """The events, and the table they were read from."""
    columns = schema.columns
    needed = [
        columns.profile_id,
        columns.item_id,
        columns.timestamp,
        *(facet.column for facet in schema.declared_facets),
    ]
    table = Table(path, needed)
    if not len(table):
        raise DataError(f"{path}: column {columns.profile_id!r}: there are no events")
    profile_id = table.ids(columns.profile_id)
    item_id = table.ids(columns.item_id)
    timestamp = table.timestamps(columns.timestamp)
    facets = {facet.name: table.feature(facet) for facet in schema.declared_facets}
    starts = np.flatnonzero(np.diff(profile_id, prepend=~profile_id[:1]))
    _check_order(table, schema, profile_id, timestamp, starts)
    _check_no_duplicates(table, schema, [profile_id, item_id, timestamp, *facets.values()])
    offsets = np.append(starts, len(profile_id)).astype(np.int64)
    return Events(profile_id[starts], offsets, item_id, timestamp, facets), table


def _merged(events: Events, schema: Schema) -> Events:
    starts = run_starts(events.item_id, events.offsets)
    ways: dict[str, Way] = {facet.name: way_of(facet) for facet in schema.facets}
    return Events(
        events.profile_id,
        merged_offsets(starts, events.offsets),
        events.item_id[starts],
        events.timestamp[starts],
        merge_facets(events.facets, ways, starts, len(events.item_id)),
        events.timestamp[np.append(starts[1:], len(events.item_id)) - 1],
    )


def _check_order(
    table: Table, schema: Schema, profile_id: np.ndarray, timestamp: np.ndarray, starts: np.ndarray
) -> None:
    """Each profile's events must lie together, oldest first; at rows `starts` the profile changes."""
    _, first_runs = np.unique(profile_id[starts], return_index=True)
    if len(first_runs) < len(starts):
        row = starts[np.setdiff1d(np.arange(len(starts)), first_runs)[0]]
        raise table.fail(
            schema.columns.profile_id,
            f"unsorted: row {row} comes back to a profile left before; sort by ({schema.columns.profile_id}, "
            f"{schema.columns.timestamp})",
        )
    backward = np.flatnonzero(np.diff(timestamp) < 0) + 1
    backward = np.setdiff1d(backward, starts)
    if len(backward):
        raise table.fail(
            schema.columns.timestamp,
            f"unsorted: row {backward[0]} is older than the row before it, of the same profile; sort by "
            f"({schema.columns.profile_id}, {schema.columns.timestamp})",
        )


def _check_no_duplicates(table: Table, schema: Schema, values: Sequence[np.ndarray]) -> None:
    flat = [column for value in values for column in value.reshape(len(value), -1).T]
    repeated = pl.DataFrame({str(number): column for number, column in enumerate(flat)}).is_duplicated()
    if repeated.any():
        row = int(repeated.arg_true()[0])
        raise table.fail(
            schema.columns.item_id,
            f"duplicate events: {repeated.sum()} rows share profile, item, timestamp, facets with another, "
            f"the first is row {row}; keep one of each",
        )


def _read_profiles(path: Path, schema: Schema, events: Events) -> Profiles:
    """profiles.parquet aligned with the events' profiles; needed only where the schema declares features."""
    features = schema.profile_features
    if not features:
        return Profiles(events.profile_id, {})
    table = Table(path, [schema.columns.profile_id, *(feature.column for feature in features)])
    profile_id = table.ids(schema.columns.profile_id)
    check_unique(table, schema.columns.profile_id, profile_id)
    order = np.argsort(profile_id, kind="stable")
    place = np.searchsorted(profile_id, events.profile_id, sorter=order)
    row = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros_like(place)
    known = profile_id[row] == events.profile_id if len(order) else np.zeros(len(row), dtype=bool)
    return Profiles(
        events.profile_id,
        {feature.name: _aligned(table.feature(feature), feature, row, known) for feature in features},
    )


def _aligned(raw: np.ndarray, feature: Feature, row: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`raw` taken at `row`, and the missing value where a row isn't `known`."""
    missing = NO_NUMBER if feature.kind == "numeric" else NO_VALUE
    aligned = np.full((len(row), *raw.shape[1:]), missing, dtype=raw.dtype)
    aligned[known] = raw[row[known]]
    return aligned


def _read_split(path: Path, events: Events) -> Split:
    if not path.exists():
        # Another process (another rank of a job) may come first; what it draws is the same.
        with suppress(FileExistsError):
            write_split(path, draw_split(events.profile_id))
    split = read_split(path)
    for part in ("test", "validation"):
        if not np.isin(getattr(split, part), events.profile_id).any():
            raise DataError(
                f"{path}: {part}: none of these profiles is in events.parquet; the split is of other data, "
                "and deleting it draws a new one"
            )
    return split
