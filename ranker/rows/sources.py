"""The requests that rows are made of, unit by unit: a unit is what a killed job makes again in full.

Shapes: B requests, C candidates over the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from foundation.dataset import Dataset
from ranker.features.candidate_features import CandidateFeatures, known_features
from ranker.requests.from_events import EventRequests
from ranker.requests.logged import LoggedConfig, LoggedRequests
from ranker.requests.request import RequestConfig, Requests
from ranker.requests.shards import RowGroup
from ranker.rows.manifest import PARTS, Part
from ranker.rows.writing import requests_per_row_group
from ranker.schema import Task, are_logged

UNIT_REQUESTS = 65_536
"""Logged requests of a unit, at least: row groups that follow each other are taken together."""
SURVEY_REQUESTS = 100_000
"""So many logged requests, of random row groups, tell what values candidate features have."""


class Drawn(NamedTuple):
    """Requests of one part; of a draw, where it is the training part."""

    part: Part
    draw: int
    requests: Requests


@dataclass(frozen=True)
class Unit:
    """Some of the requests.

    Attributes:
        num_requests: about how many are looked at.
        drawn: makes them.
        tally: what was skipped and noticed since it was last asked.
        per_row_group: requests of a row group, by part; None where `drawn` yields a part at once.
    """

    num_requests: int
    drawn: Callable[[], Iterator[Drawn]]
    tally: Callable[[], dict[str, Any]]
    per_row_group: dict[str, int] | None = None


@dataclass(frozen=True)
class Source:
    """Where requests come from.

    Attributes:
        units: all of them.
        num_draws: of the training requests.
        candidates: what training requests tell of the candidate features.
        tally: what was skipped before the first unit.
    """

    units: list[Unit]
    num_draws: int
    candidates: CandidateFeatures
    tally: dict[str, Any]


class DrawConfig(NamedTuple):
    """How requests are made of events, and how many times."""

    requests: RequestConfig
    validation_per_profile: int
    draws: int
    seed: int


def request_source(
    dataset: Dataset, tasks: tuple[Task, ...], drawing: DrawConfig, logged: LoggedConfig
) -> Source:
    """The requests of a dataset, logged or made of events.

    Raises:
        DataError: logged ones are missing, or bad and the policy is to stop.
    """
    if are_logged(tasks):
        return _logged_source(LoggedRequests(dataset, tasks, logged))
    return _event_source(EventRequests(dataset, tasks), drawing)


def _event_source(events: EventRequests, drawing: DrawConfig) -> Source:
    train = drawing.requests
    held_out = {"validation": drawing.validation_per_profile, "test": 0}
    counts: Counter[str] = Counter()

    def draws(draw: int) -> Iterator[Drawn]:
        requests = events.build("train", train, (drawing.seed, draw))
        sampled, possible = events.negatives(requests)
        counts.update({"negatives sampled": sampled, "negatives possible": possible})
        # Made profile by profile: neighbours on disk, which a loader reads together, should be strangers.
        order = np.random.default_rng((drawing.seed, draw, 1)).permutation(len(requests.profile))
        yield Drawn("train", draw, requests.take(order))

    def held(part: Part) -> Iterator[Drawn]:
        config = RequestConfig(train.positives, train.negatives, train.candidates, held_out[part])
        # The seed is fixed, so that runs can be compared.
        yield Drawn(part, 0, events.build(part, config, 0))

    def tally() -> dict[str, Any]:
        told = {"noticed": dict(counts)}
        counts.clear()
        return told

    num = events.dataset.num_profiles
    units = [Unit(num, lambda draw=draw: draws(draw), tally) for draw in range(drawing.draws)]
    units += [Unit(num, lambda part=part: held(part), tally) for part in PARTS if part != "train"]
    return Source(units, drawing.draws, CandidateFeatures(), {})


def _logged_source(logged: LoggedRequests) -> Source:
    groups = logged.row_groups()
    before = _tally(logged)
    num_logged = sum(group.num_rows for group in groups)
    candidates, shares = _survey(logged, groups)
    # The survey's requests are read again, and counted then.
    _tally(logged)
    per_row_group = {part: requests_per_row_group(int(share * num_logged)) for part, share in shares.items()}

    def read(members: list[RowGroup]) -> Iterator[Drawn]:
        for group in members:
            for requests in logged.read(group):
                for part in PARTS:
                    yield Drawn(part, 0, logged.split(requests, part))

    units = [
        Unit(
            sum(group.num_rows for group in members),
            lambda members=members: read(members),
            lambda: _tally(logged),
            per_row_group,
        )
        for members in _together(groups)
    ]
    return Source(units, 1, candidates, before)


def _survey(logged: LoggedRequests, groups: list[RowGroup]) -> tuple[CandidateFeatures, dict[str, float]]:
    """What training requests tell of the candidate features, and each part's share of the requests."""
    values: dict[str, list[np.ndarray]] = {
        feature.name: [np.empty(0, dtype=np.float32 if feature.is_number else np.int64)]
        for feature in logged.features
    }
    found: Counter[str] = Counter()
    looked_at = 0
    for place in np.random.default_rng(0).permutation(len(groups)):
        if looked_at >= SURVEY_REQUESTS:
            break
        for requests in logged.read(groups[place]):
            looked_at += len(requests.profile)
            for part in PARTS:
                taken = logged.split(requests, part)
                found[part] += len(taken.profile)
                if part == "train":
                    for name, raw in taken.candidate_features.items():
                        values[name].append(raw)
            if looked_at >= SURVEY_REQUESTS:
                break
    raw = {name: np.concatenate(parts) for name, parts in values.items()}
    return known_features(logged.features, raw), {part: found[part] / max(looked_at, 1) for part in PARTS}


def _together(groups: list[RowGroup]) -> list[list[RowGroup]]:
    """Row groups that follow each other, until they have `UNIT_REQUESTS`."""
    units: list[list[RowGroup]] = []
    waiting: list[RowGroup] = []
    for group in groups:
        waiting.append(group)
        if sum(each.num_rows for each in waiting) >= UNIT_REQUESTS:
            units.append(waiting)
            waiting = []
    return [*units, waiting] if waiting else units


def _tally(logged: LoggedRequests) -> dict[str, Any]:
    told = {
        "noticed": dict(logged.counts),
        "skipped": dict(logged.bad.counts),
        "examples": dict(logged.bad.examples),
    }
    logged.counts.clear()
    logged.bad.counts.clear()
    logged.bad.examples.clear()
    return told
