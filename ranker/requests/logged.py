"""Requests that were logged: `requests.parquet`, with the impressions shown and a label list per task.

Shapes: B requests, C candidates over the batch, N tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.ingestion import Table
from foundation.raw_values import NO_NUMBER
from foundation.split import profile_roles, training_cut
from ranker.requests.request import ROLE_OF, Requests, Which
from ranker.schema import Task

CANDIDATES = "candidates"
FILE = "requests.parquet"


def read_requests(dataset: Dataset, tasks: tuple[Task, ...]) -> Requests:
    """Reads all requests of the file, in its order; a candidate whose label is null has none for that task.

    The history of a request is what lies before its time: an event of the same second belongs to its outcome.

    Raises:
        DataError: a column is missing or of the wrong kind, a label is neither 0, 1 nor null, a request shows
            no candidate, or a label list is longer or shorter than the candidates.
    """
    columns, facets = dataset.schema.columns, dataset.schema.facets_of("when", "where")
    labelled = [task.column for task in tasks if task.column is not None]
    assert len(labelled) == len(tasks), tasks
    needed = [
        columns.profile_id,
        columns.timestamp,
        CANDIDATES,
        *labelled,
        *(facet.column for facet in facets),
    ]
    table = Table(dataset.folder / FILE, needed)
    candidate_id, lengths = table.id_lists(CANDIDATES)
    if (lengths == 0).any():
        raise table.fail(
            CANDIDATES, f"row {int(lengths.argmin())} holds no candidate; every request needs one"
        )
    values = [_labels(table, column, lengths) for column in labelled]
    timestamp = table.timestamps(columns.timestamp)
    profile = _profile_rows(table, columns.profile_id, dataset)
    return Requests(
        profile=profile,
        history_end=_history_end(dataset, profile, timestamp),
        timestamp=timestamp,
        facets={facet.name: table.feature(facet) for facet in facets},
        candidate_offsets=np.concatenate(([0], np.cumsum(lengths))),
        candidate_id=candidate_id,
        labels=np.stack([np.where(value == NO_NUMBER, 0, value) for value in values], axis=1),
        mask=np.stack([value != NO_NUMBER for value in values], axis=1),
        candidate_features={},
    )


def usable(dataset: Dataset, requests: Requests, which: Which) -> NDArray[np.int64]:
    """Rows of the training, validation or test profiles' requests whose outcome no decoder has seen.

    Of a training profile those count whose history reaches the cut, so that every label is of an event behind
    it; of held-out profiles the same, so that what is tested is like what was trained.
    """
    roles, num_events = profile_roles(dataset), np.diff(dataset.offsets)
    cut = dataset.offsets[:-1] + training_cut(num_events)
    return np.flatnonzero(
        (roles[requests.profile] == ROLE_OF[which]) & (requests.history_end >= cut[requests.profile])
    )


def _labels(table: Table, column: str, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    values, given = table.number_lists(column)
    if (given != lengths).any():
        row = int(np.flatnonzero(given != lengths)[0])
        raise table.fail(column, f"row {row} holds {given[row]} labels for {lengths[row]} candidates")
    wrong = (values != 0) & (values != 1) & (values != NO_NUMBER)
    if wrong.any():
        raise table.fail(column, f"holds {values[wrong][0]:g}; a label is 0, 1 or null")
    return values


def _profile_rows(table: Table, column: str, dataset: Dataset) -> NDArray[np.int64]:
    profile_id = table.ids(column)
    order = np.argsort(dataset.profile_ids, kind="stable")
    place = np.searchsorted(dataset.profile_ids, profile_id, sorter=order)
    rows = order[np.minimum(place, len(order) - 1)]
    unknown = np.flatnonzero(dataset.profile_ids[rows] != profile_id)
    if len(unknown):
        raise table.fail(
            column, f"row {unknown[0]}: no event of this profile in events.parquet; leave its requests out"
        )
    return rows


def _history_end(
    dataset: Dataset, profile: NDArray[np.int64], timestamp: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Event row of each profile's first event at or after the given time, or the end of its events."""
    times = np.concatenate((dataset.events.timestamp, timestamp))
    _, dense = np.unique(times, return_inverse=True)
    num_times = int(dense.max(initial=0)) + 1
    owner = np.repeat(np.arange(dataset.num_profiles), np.diff(dataset.offsets))
    # Events are sorted by (profile, time), so their combined keys ascend.
    events = owner * num_times + dense[: dataset.num_events]
    return np.searchsorted(events, profile * num_times + dense[dataset.num_events :], side="left")
