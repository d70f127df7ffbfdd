"""Requests from events, where no impressions were logged.

A request is a point of a profile's history behind the cut (the last 20 % of its events), at the time of its
first positive. Positives are the next few items of the catalogue that the profile meets for the first time;
the other candidates are sampled among the items of the catalogue that it has neither met before nor among
these positives, half of them uniform, half by popularity. So every candidate is known and new to the profile:
neither tells a positive from a sampled one. A point that no new item follows makes no request. History is
everything before the point, items met again and unknown ones included. Training requests come from training
profiles, the others from held-out ones, so that no decoder has seen a label that a ranker is trained or
tested on.

Shapes: B requests, C candidates over the batch, N tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.dataset import Dataset
from foundation.raw_values import NO_NUMBER
from foundation.split import profile_roles, training_cut
from foundation.window import span_rows
from ranker.requests.negatives import NegativeSampler
from ranker.requests.request import ROLE_OF, RequestConfig, Requests, Seed, Which, at_most
from ranker.schema import Task


class EventRequests:
    """Makes requests of events; what doesn't change from draw to draw is computed once.

    Args:
        dataset: whose events.
        tasks: the N columns of the labels, none of them logged; there may be no task and so no label.
    """

    def __init__(self, dataset: Dataset, tasks: tuple[Task, ...]) -> None:
        self.dataset = dataset
        self.tasks = tasks
        self._roles = profile_roles(dataset)
        self._sampler = NegativeSampler(dataset)
        # Event rows where a profile meets an item of the catalogue for the first time: only they are positives.
        self._new = self._sampler.first_meetings
        self._new_offsets = np.searchsorted(self._new, dataset.offsets)

    def build(self, which: Which, config: RequestConfig, seed: Seed) -> Requests:
        """Requests of the training, validation or test profiles; equal arguments give equal requests.

        Points of a profile lie `positives` new items apart, from the cut on. For training they are moved along
        together at random, so that another seed brings other points, and as many.
        """
        rng = np.random.default_rng(seed)
        profile, point = self._points(which, config, rng)
        end = np.minimum(point + config.positives, self._new_offsets[profile + 1])
        start, stop = self._new[point], self._new[end - 1] + 1
        positives = span_rows(point, end)
        rows, num_positives = self._new[positives.rows], positives.lengths
        wanted = np.full(len(profile), config.negatives)
        if config.candidates is not None:
            wanted = config.candidates - num_positives
        sampled, num_sampled = self._sampler.sample(profile, stop, wanted, rng)
        labels, mask = event_labels(self.dataset, self.tasks, rows)
        # Where each candidate of the requests, shuffled within its request, lies in [positives ; sampled].
        request = np.concatenate(
            (
                np.repeat(np.arange(len(profile)), num_positives),
                np.repeat(np.arange(len(profile)), num_sampled),
            )
        )
        order = np.lexsort((rng.random(len(request)), request))
        sampled_labels = np.zeros((len(sampled), len(self.tasks)), dtype=np.float32)
        is_labelled = np.array([task.kind == "interaction" for task in self.tasks], dtype=bool)
        sampled_mask = np.broadcast_to(is_labelled, sampled_labels.shape)
        return Requests(
            profile=profile,
            history_end=start,
            timestamp=self.dataset.events.timestamp[start],
            facets={
                facet.name: self.dataset.events.facets[facet.name][start]
                for facet in self.dataset.schema.facets_of("when", "where")
            },
            candidate_offsets=np.concatenate(([0], np.cumsum(num_positives + num_sampled))),
            candidate_id=np.concatenate(
                (self.dataset.events.item_id[rows], self.dataset.catalogue.item_id[sampled])
            )[order],
            labels=np.concatenate((labels, sampled_labels))[order],
            mask=np.concatenate((mask, sampled_mask))[order],
            candidate_features={},
        )

    def negatives(self, requests: Requests) -> tuple[int, int]:
        """How many candidates of these requests were sampled, and how many could have been: (0, 0) without labels.

        A positive here is what the profile went on to, so that there has to be an `interaction` task.
        """
        went_on = [number for number, task in enumerate(self.tasks) if task.kind == "interaction"]
        if not went_on:
            return 0, 0
        num_met = np.searchsorted(self._new, requests.history_end) - self._new_offsets[requests.profile]
        num_positives = int(requests.labels[:, went_on[0]].sum())
        possible = int((self.dataset.num_items - num_met).sum()) - num_positives
        return len(requests.candidate_id) - num_positives, possible

    def _points(
        self, which: Which, config: RequestConfig, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of profiles and places in `_new` that requests are made at, `[B]` each, profile by profile."""
        offsets = self.dataset.offsets
        chosen = np.flatnonzero(self._roles == ROLE_OF[which])
        cut = offsets[chosen] + training_cut(np.diff(offsets)[chosen])
        first = np.searchsorted(self._new, cut)
        behind = self._new_offsets[chosen + 1] - first
        num_points = -(-behind // config.positives)
        phase = np.zeros(len(chosen), dtype=np.int64)
        if which == "train":
            # As far as the points can move without losing the last of them: any seed gives as many requests.
            phase = rng.integers(behind - config.positives * (num_points - 1))
        nth = span_rows(np.zeros_like(num_points), num_points).rows
        which_profile = np.repeat(np.arange(len(chosen)), num_points)
        point = (first + phase)[which_profile] + config.positives * nth
        if config.per_profile:
            kept = at_most(config.per_profile, which_profile, rng)
            which_profile, point = which_profile[kept], point[kept]
        return chosen[which_profile], point


def event_labels(
    dataset: Dataset, tasks: tuple[Task, ...], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Labels and mask, `[len(rows), N]` each, of candidates that the profile went on to in these events."""
    labels = np.ones((len(rows), len(tasks)), dtype=np.float32)
    mask = np.ones((len(rows), len(tasks)), dtype=bool)
    for column, task in enumerate(tasks):
        if task.kind == "threshold":
            assert task.facet is not None and task.at_least is not None, task
            values = dataset.events.facets[task.facet][rows]
            mask[:, column] = values != NO_NUMBER
            labels[:, column] = mask[:, column] & (values >= np.float32(task.at_least))
    return labels, mask
