"""A request to train or test on: a point in a profile's history, and the candidates that are ranked there.

Shapes: B requests, C candidates over the batch, N tasks, M values of a multi-valued facet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from foundation.split import TEST, TRAIN, VALIDATION
from foundation.window import span_rows

Which = Literal["train", "validation", "test"]
Seed = int | tuple[int, ...]
ROLE_OF: dict[str, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


class Requests(NamedTuple):
    """B requests with their candidates and labels, in raw values."""

    profile: NDArray[np.int64]
    """`[B]` rows of profiles in the dataset."""
    history_end: NDArray[np.int64]
    """`[B]` event rows: the history is the profile's events before it. The event there is what came next."""
    timestamp: NDArray[np.int64]
    """`[B]` unix seconds."""
    facets: dict[str, NDArray]
    """The *when* and *where* facets of the requests, raw, `[B]` or `[B, M]`."""
    candidate_offsets: NDArray[np.int64]
    """`[B + 1]`: request `b` owns candidates `candidate_offsets[b]` to `candidate_offsets[b + 1]`."""
    candidate_id: NDArray[np.int64]
    """`[C]` raw item ids, in no telling order."""
    labels: NDArray[np.float32]
    """`[C, N]`, 0 or 1; 0 where there is none."""
    mask: NDArray[np.bool_]
    """`[C, N]`, whether there is a label."""
    candidate_features: dict[str, NDArray]
    """Raw values `[C]` of the candidate features, which only logged requests have."""

    def take(self, rows: NDArray[np.int64]) -> Requests:
        """The requests at `rows`, in that order."""
        span = span_rows(self.candidate_offsets[rows], self.candidate_offsets[rows + 1])
        return Requests(
            self.profile[rows],
            self.history_end[rows],
            self.timestamp[rows],
            {name: values[rows] for name, values in self.facets.items()},
            np.concatenate(([0], np.cumsum(span.lengths))),
            self.candidate_id[span.rows],
            self.labels[span.rows],
            self.mask[span.rows],
            {name: values[span.rows] for name, values in self.candidate_features.items()},
        )


def join_requests(parts: Sequence[Requests]) -> Requests:
    """The requests of several, one after another; at least one part."""
    lengths = np.concatenate([np.diff(part.candidate_offsets) for part in parts])
    return Requests(
        np.concatenate([part.profile for part in parts]),
        np.concatenate([part.history_end for part in parts]),
        np.concatenate([part.timestamp for part in parts]),
        {name: np.concatenate([part.facets[name] for part in parts]) for name in parts[0].facets},
        np.concatenate(([0], np.cumsum(lengths))),
        np.concatenate([part.candidate_id for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.mask for part in parts]),
        {
            name: np.concatenate([part.candidate_features[name] for part in parts])
            for name in parts[0].candidate_features
        },
    )


@dataclass(frozen=True)
class RequestConfig:
    """How requests are made of events.

    Attributes:
        positives: so many items that the profile meets next, and for the first time, make a request's
            positives, and lie between one request and the next.
        negatives: sampled candidates of a request.
        candidates: all candidates of a request; where given, as many are sampled as it takes, and `negatives`
            is not read.
        per_profile: at most so many requests of a profile, drawn at random; 0 for all.
    """

    positives: int = 5
    negatives: int = 15
    candidates: int | None = None
    per_profile: int = 0

    def __post_init__(self) -> None:
        for name, least in (("positives", 1), ("negatives", 0), ("per_profile", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"requests.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.candidates is not None and self.candidates < self.positives:
            raise ValueError(
                f"requests.candidates is {self.candidates}; it must be at least positives = {self.positives}"
            )


def at_most(number: int, group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of at most `number` members of each group (ascending), drawn at random, in their order."""
    order = np.lexsort((rng.random(len(group)), group))
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    place = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    return np.sort(order[place < number])
