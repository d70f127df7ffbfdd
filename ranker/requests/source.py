"""Where a dataset's requests come from: requests.parquet where its tasks are logged, else its events."""

from __future__ import annotations

import numpy as np

from foundation.dataset import Dataset
from ranker.requests.from_events import EventRequests
from ranker.requests.logged import read_requests
from ranker.requests.request import RequestConfig, Requests, Seed, Which, at_most
from ranker.schema import Task, are_logged


class RequestSource:
    """Builds the requests of one dataset; what doesn't change from draw to draw is computed once.

    Args:
        dataset: a dataset.
        tasks: the N columns of the labels. Logged ones are read from requests.parquet, with the candidates
            shown there; with others, or with none at all, requests are made of events.

    Raises:
        DataError: the tasks are logged and requests.parquet is missing or wrong.
    """

    def __init__(self, dataset: Dataset, tasks: tuple[Task, ...]) -> None:
        self._logged = read_requests(dataset, tasks) if are_logged(tasks) else None
        self._events = None if self._logged is not None else EventRequests(dataset, tasks)

    def build(self, which: Which, config: RequestConfig, seed: Seed) -> Requests:
        """Requests of the training, validation or test profiles; equal arguments give equal requests.

        They come profile by profile. Of logged requests only `config.per_profile` is heeded: their candidates
        are what was shown.
        """
        if self._events is not None:
            return self._events.build(which, config, seed)
        assert self._logged is not None
        logged, requests = self._logged
        requests = logged.split(requests, which)
        rows = np.argsort(requests.profile, kind="stable")
        if config.per_profile:
            rows = rows[at_most(config.per_profile, requests.profile[rows], np.random.default_rng(seed))]
        return requests.take(rows)


def build_requests(
    dataset: Dataset, tasks: tuple[Task, ...], which: Which, config: RequestConfig, seed: Seed = 0
) -> Requests:
    """Requests of a dataset in one go; see `RequestSource`.

    For requests without labels give no tasks: `build_requests(dataset, (), "test",
    RequestConfig(candidates=500))`.
    """
    return RequestSource(dataset, tasks).build(which, config, seed)
