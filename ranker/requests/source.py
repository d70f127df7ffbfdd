"""Where a dataset's requests come from: requests.parquet where its tasks are logged, else its events."""

from __future__ import annotations

import numpy as np

from foundation.dataset import Dataset
from ranker.requests.from_events import EventRequests
from ranker.requests.logged import read_requests
from ranker.requests.request import RequestConfig, Requests, Seed, Which, at_most
from ranker.schema import Task, are_logged


def build_requests(
    dataset: Dataset, tasks: tuple[Task, ...], which: Which, config: RequestConfig, seed: Seed = 0
) -> Requests:
    """Requests of the training, validation or test profiles, profile by profile; equal arguments give equal requests.

    All are in memory at once; what streams them is the feature job (`ranker.rows.job`).

    Args:
        dataset: a dataset.
        tasks: the N columns of the labels. Logged ones are read from requests.parquet, with the candidates shown
            there; with others, or with none at all, requests are made of events.
        which: whose.
        config: of logged requests only `per_profile` is heeded: their candidates are what was shown.
        seed: of what is drawn.

    Raises:
        DataError: the tasks are logged and requests.parquet is missing or wrong.
    """
    if not are_logged(tasks):
        return EventRequests(dataset, tasks).build(which, config, seed)
    logged, requests = read_requests(dataset, tasks)
    requests = logged.split(requests, which)
    rows = np.argsort(requests.profile, kind="stable")
    if config.per_profile:
        rows = rows[at_most(config.per_profile, requests.profile[rows], np.random.default_rng(seed))]
    return requests.take(rows)
