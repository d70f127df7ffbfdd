"""The requests that are measured: held-out profiles with their histories and candidates, in raw values.

Shapes: B requests, C candidates of a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.split import TEST, profile_roles
from foundation.window import WindowConfig, window_start
from ranker.features.histories import Histories
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.source import build_requests


@dataclass(frozen=True)
class HeldOutConfig:
    """Which requests to build.

    Attributes:
        requests: how many.
        candidates: C of each request.
        history: events sent with each request; None for what each profile has, up to the window.
        seed: of points in histories, and of candidates.
    """

    requests: int = 200
    candidates: int = 500
    history: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.history is not None and self.history < 1:
            raise ValueError(f"history is {self.history}; it must be at least 1 event")


class HeldOutRequests:
    """B requests of test profiles.

    Args:
        dataset: whose profiles.
        window: how much of a history is sent.
        requests: the points, and their candidates.
    """

    def __init__(self, dataset: Dataset, window: WindowConfig, requests: Requests) -> None:
        self.dataset = dataset
        self.window = window
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests.profile)

    def profile_id(self, number: int) -> int:
        """Raw id of the profile of request `number`."""
        return int(self.dataset.profile_ids[self._requests.profile[number]])

    def history_rows(self, number: int) -> slice:
        """Rows of the events that request `number` sends, oldest first."""
        requests = self._requests
        first = int(self.dataset.offsets[requests.profile[number]])
        end = int(requests.history_end[number])
        return slice(first + int(window_start(end - first, self.window.window, self.window.block)), end)

    def histories(self, number: int) -> Histories:
        """The profile's side of request `number`, a batch of one."""
        requests, events = self._requests, self.dataset.events
        profile = int(requests.profile[number])
        rows = self.history_rows(number)
        return Histories(
            history_lengths=np.array([rows.stop - rows.start]),
            num_events_before=np.array([rows.start - int(self.dataset.offsets[profile])]),
            item_id=events.item_id[rows],
            timestamp=events.timestamp[rows],
            facets={name: raw[rows] for name, raw in events.facets.items()},
            request_timestamp=requests.timestamp[number : number + 1],
            request_facets={name: raw[number : number + 1] for name, raw in requests.facets.items()},
            profile_features={
                name: raw[profile : profile + 1] for name, raw in self.dataset.profiles.features.items()
            },
        )

    def candidates(self, number: int) -> NDArray[np.int64]:
        """Raw item ids `[C]` of request `number`."""
        offsets = self._requests.candidate_offsets
        return self._requests.candidate_id[offsets[number] : offsets[number + 1]]

    def next_items(self, number: int) -> NDArray[np.int64]:
        """Raw ids of the candidates of request `number` that its profile went on to, soonest first."""
        requests = self._requests
        end = int(self.dataset.offsets[requests.profile[number] + 1])
        later = self.dataset.events.item_id[int(requests.history_end[number]) : end]
        _, first = np.unique(later, return_index=True)
        distinct = later[np.sort(first)]
        return distinct[np.isin(distinct, self.candidates(number))]


def build_held_out_requests(dataset: Dataset, window: WindowConfig, config: HeldOutConfig) -> HeldOutRequests:
    """Requests in the last 20 % of test profiles' histories, of as many different profiles as there are.

    Points and candidates follow the rule of `ranker.requests.from_events`. Without enough points, points come again.

    Raises:
        DataError: no test profile has a long enough history, or the catalogue is too small for the candidates.
    """
    num_held_out = int((profile_roles(dataset) == TEST).sum())
    for per_profile in (-(-config.requests // num_held_out), 0):
        requests = build_requests(
            dataset,
            (),
            "test",
            RequestConfig(candidates=config.candidates, per_profile=per_profile),
            config.seed,
        )
        if config.history is not None:
            requests = _with_history(dataset, window, requests, config.history)
        if len(requests.profile) >= config.requests:
            break
    if not len(requests.profile):
        raise DataError(
            f"{dataset.folder}: no test profile has {config.history or 1} events before its last ones; "
            "choose a shorter history"
        )
    _check_candidates(requests, config)
    rng = np.random.default_rng(config.seed)
    rounds = -(-config.requests // len(requests.profile))
    order = np.concatenate([rng.permutation(len(requests.profile)) for _ in range(rounds)])
    return HeldOutRequests(dataset, window, requests.take(order[: config.requests]))


def _with_history(dataset: Dataset, window: WindowConfig, requests: Requests, length: int) -> Requests:
    """The requests whose profile has a point, at or before its own, at which exactly `length` events are sent.

    They move to that point. Histories beyond the window only have lengths in (window - block, window].
    """
    first = dataset.offsets[requests.profile]
    num_events = requests.history_end - first
    lengths = np.arange(int(num_events.max(initial=0)) + 1)
    fits = lengths - window_start(lengths, window.window, window.block) == length
    latest = np.maximum.accumulate(np.where(fits, lengths, -1))[num_events]
    kept = np.flatnonzero(latest >= 0)
    end = (first + latest)[kept]
    return requests.take(kept)._replace(
        history_end=end,
        timestamp=dataset.events.timestamp[end],
        facets={name: dataset.events.facets[name][end] for name in requests.facets},
    )


def _check_candidates(requests: Requests, config: HeldOutConfig) -> None:
    fewest = int(np.diff(requests.candidate_offsets).min())
    if fewest < config.candidates:
        raise DataError(
            f"candidates is {config.candidates}; a profile has only {fewest} items left that it has not met, "
            "choose fewer"
        )
