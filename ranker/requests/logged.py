"""Requests that were logged: `requests.parquet`, with the impressions shown and their labels.

They are streamed: a file may be larger than memory. What is in memory is the dataset's events, sorted
(`ranker.requests.event_index`), and some thousand requests at a time.

Shapes: B requests, C candidates over the batch, N tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.ingestion import Table
from foundation.raw_values import NO_NUMBER
from ranker.requests.bad_rows import BadRows, Policy, RowFilter, StopError
from ranker.requests.candidate_values import candidate_values
from ranker.requests.event_index import UNKNOWN, EventIndex, WindowLabels
from ranker.requests.request import Requests, Which, join_requests
from ranker.requests.shards import RowGroup, open_shard, read_batches, request_files
from ranker.schema import Task, load_candidate_features

CANDIDATES = "candidates"


@dataclass(frozen=True)
class LoggedConfig:
    """What to do about logged requests that aren't as they should be.

    Attributes:
        bad_rows: stop with an error at the first bad request or shard, or skip it and count it. Bad are: no profile or
            time, a profile without events, no candidate or too many, a list that is longer or shorter than the
            candidates, a label out of range, a shard that is damaged or whose columns are of another kind.
        without_positive: keep, skip or stop at requests none of whose candidates has a positive label. They are kept:
            they tell how often nothing is chosen, and probabilities would be too high without them.
        max_candidates: a request with more candidates is bad.
    """

    bad_rows: Policy = "stop"
    without_positive: Literal["keep", "skip", "stop"] = "keep"
    max_candidates: int = 1_000

    def __post_init__(self) -> None:
        if self.max_candidates < 1:
            raise ValueError(f"max_candidates is {self.max_candidates}; it must be at least 1")


class LoggedRequests:
    """The logged requests of a dataset.

    Args:
        dataset: whose folder has them.
        tasks: the N columns of the labels, all of kinds `column` and `window`.
        config: policies.

    Attributes:
        features: declared candidate features.
        bad: what was left out so far.
        counts: what was noticed so far.

    Raises:
        DataError: there is no file.
    """

    def __init__(self, dataset: Dataset, tasks: tuple[Task, ...], config: LoggedConfig) -> None:
        schema_file = dataset.folder / "schema.toml"
        self.dataset, self.tasks, self.config = dataset, tasks, config
        self.features = load_candidate_features(schema_file) if schema_file.exists() else ()
        self.files = request_files(dataset.folder)
        self.index = EventIndex(dataset)
        self.bad = BadRows(config.bad_rows)
        self.counts: Counter[str] = Counter()
        self._windows = {task.name: WindowLabels(self.index, task) for task in tasks if task.kind == "window"}
        self._facets = dataset.schema.facets_of("when", "where")

    @property
    def columns(self) -> list[str]:
        """That every file must have."""
        names = self.dataset.schema.columns
        return [
            names.profile_id,
            names.timestamp,
            CANDIDATES,
            *(task.column for task in self.tasks if task.column is not None),
            *(facet.column for facet in self._facets),
            *(feature.column for feature in self.features),
        ]

    def row_groups(self) -> list[RowGroup]:
        """Of all files, in their order; a file that can't be read is left out, if the policy is to skip.

        Raises:
            DataError: names the file, and the column whose type changed.
        """
        groups: list[RowGroup] = []
        like: pa.Schema | None = None
        for path in self.files:
            try:
                schema, found = open_shard(path, self.columns, like)
            except DataError as error:
                # How many requests it holds, nobody can tell.
                self.bad.meet("unreadable shards", 1, error)
                continue
            like = schema if like is None else like
            groups.extend(found)
        return groups

    def read(self, row_group: RowGroup) -> Iterator[Requests]:
        """Requests of a row group, some thousand at a time; what was left out is counted in `bad`.

        Raises:
            DataError: a request, a column or the file is bad and the policy is to stop; names file, row group, field.
        """
        done = 0
        try:
            for first, frame in read_batches(row_group, self.columns):
                rows = RowFilter(str(row_group), first, frame, self.bad)
                requests = self._requests(rows)
                done = first + frame.height
                self.counts["requests read"] += frame.height
                self.counts["candidates read"] += len(requests.candidate_id)
                self.counts["requests before the cut, not used"] += self.index.num_before_cut(
                    requests.profile, requests.history_end
                )
                if len(requests.profile):
                    yield requests
        except StopError:
            raise
        except DataError as error:
            # Of a column, or of the file: the rest of the row group is of no use.
            self.bad.meet("requests of unreadable row groups", row_group.num_rows - done, error)

    def split(self, requests: Requests, which: Which) -> Requests:
        """The requests of one part (see `EventIndex.usable`), profile's order kept.

        Positions are kept in held-out parts, too: labels are of them. Evaluation ranks without
        (`ranker.evaluation.evaluation.Scores`).
        """
        return requests.take(self.index.usable(requests.profile, requests.history_end, which))

    def _requests(self, rows: RowFilter) -> Requests:
        names = self.dataset.schema.columns
        rows.drop_nulls((names.profile_id, names.timestamp))
        rows.drop_candidates(CANDIDATES, self.config.max_candidates)
        for task in self.tasks:
            if task.column is not None:
                rows.drop_uneven(task.column, CANDIDATES, "labels")
                if task.at_least is None:
                    rows.drop_wrong_labels(task.column)
                else:
                    rows.drop_infinite(task.column)
        for feature in self.features:
            rows.drop_uneven(feature.column, CANDIDATES, "values")
            if feature.is_number:
                rows.drop_infinite(feature.column)
        profile = self.index.profile_rows(Table.of_frame(rows.where, rows.frame).ids(names.profile_id))
        kept = rows.drop(
            profile == UNKNOWN,
            names.profile_id,
            "profile without events",
            lambda _: "is of a profile that has no event in events.parquet",
        )
        return self._drop_without_positive(rows, self._looked_up(rows, profile[kept]))

    def _looked_up(self, rows: RowFilter, profile: NDArray[np.int64]) -> Requests:
        table = Table.of_frame(rows.where, rows.frame)
        candidate_id, lengths = table.id_lists(CANDIDATES)
        timestamp = table.timestamps(self.dataset.schema.columns.timestamp)
        history_end = self.index.history_end(profile, timestamp)
        self.counts["requests within a merged event"] += self.index.num_straddled(
            profile, history_end, timestamp
        )
        of_candidate = np.repeat(np.arange(len(profile)), lengths)
        labels, mask = [], []
        for task in self.tasks:
            label, there = self._labels(
                task, table, (profile[of_candidate], candidate_id, timestamp[of_candidate])
            )
            labels.append(label)
            mask.append(there)
        return Requests(
            profile=profile,
            history_end=history_end,
            timestamp=timestamp,
            facets={facet.name: table.feature(facet) for facet in self._facets},
            candidate_offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            candidate_id=candidate_id,
            labels=np.stack(labels, axis=1),
            mask=np.stack(mask, axis=1),
            candidate_features={
                feature.name: candidate_values(table, feature, lengths) for feature in self.features
            },
        )

    def _labels(
        self, task: Task, table: Table, candidates: tuple[NDArray[np.int64], ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if task.kind == "window":
            label, mask = self._windows[task.name].labels(*candidates)
            self.counts[f"{task.name}: windows that the log ends in"] += int((~mask).sum())
            return label, mask
        assert task.column is not None, task
        values, _ = table.number_lists(task.column)
        mask = values != NO_NUMBER
        if task.at_least is not None:
            return (mask & (values >= np.float32(task.at_least))).astype(np.float32), mask
        return np.where(mask, values, 0).astype(np.float32), mask

    def _drop_without_positive(self, rows: RowFilter, requests: Requests) -> Requests:
        owner = np.repeat(np.arange(len(requests.profile)), np.diff(requests.candidate_offsets))
        positive = np.bincount(owner[(requests.labels > 0).any(axis=1)], minlength=len(requests.profile)) > 0
        self.counts["requests without a positive"] += int((~positive).sum())
        policy = self.config.without_positive
        if policy == "keep" or positive.all():
            return requests
        rows.drop(
            ~positive, CANDIDATES, "no positive", lambda _: "has no candidate with a positive label", policy
        )
        return requests.take(np.flatnonzero(positive))


def read_requests(dataset: Dataset, tasks: tuple[Task, ...]) -> tuple[LoggedRequests, Requests]:
    """All logged requests in memory, in the order of the files, and their source.

    Raises:
        DataError: a file, column or request is not as it should be, or there is no request.
    """
    logged = LoggedRequests(dataset, tasks, LoggedConfig())
    parts = [part for row_group in logged.row_groups() for part in logged.read(row_group)]
    if not parts:
        raise DataError(f"{logged.files[0]}: holds no request")
    return logged, join_requests(parts)
