"""Seeded requests drawn from a ranker's vocabularies: what export is checked with, and the sample request.

Shapes: n events of a history, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foundation.schema import Feature
from foundation.vocabulary import Lookup, NumericBuckets
from ranker.features.builder import FeatureBuilder
from ranker.features.candidate_features import CandidateFeature
from serving.rank_request import History, RankRequest

UNKNOWN_ID = -1
"""Put among known ids, so that the out-of-vocabulary path is taken too; unknown in any sensible data."""
SECONDS_BETWEEN_EVENTS = 3 * 3600


def example_request(
    features: FeatureBuilder, num_events: int, num_candidates: int, rng: np.random.Generator
) -> RankRequest:
    """A request with known values everywhere."""
    schema, vocabularies = features.tokenizer.schema, features.tokenizer.vocabularies
    items = vocabularies.items.keys
    gaps = rng.integers(60, 2 * SECONDS_BETWEEN_EVENTS, size=num_events + 1)
    times = (vocabularies.first_timestamp + np.cumsum(gaps)).tolist()
    candidates = rng.choice(items, size=num_candidates, replace=num_candidates > len(items)).tolist()
    facets = {
        facet.name: [_value(facet, vocabularies.facets[facet.name], rng) for _ in range(num_events)]
        for facet in schema.facets
    }
    return RankRequest(
        timestamp=times[-1],
        candidates=candidates,
        history=History(rng.choice(items, size=num_events).tolist(), times[:-1], facets),
        context=_values(schema.facets_of("when", "where"), vocabularies.facets, rng),
        profile=_values(schema.profile_features, vocabularies.profile_features, rng),
        candidate_features={
            each.feature.name: [_value(each.feature, each.lookup, rng) for _ in candidates]
            for each in features.config.candidates.asked_for
        },
    )


def with_odd_candidates(request: RankRequest) -> RankRequest:
    """The same request with a repeated and an unknown candidate among its own, where it has more than two."""
    if len(request.candidates) <= 2:
        return request
    first, _, _, *others = request.candidates
    return replace(request, candidates=[first, first, UNKNOWN_ID, *others])


def _values(
    declared: Sequence[Feature], lookups: dict[str, Lookup], rng: np.random.Generator
) -> dict[str, Any]:
    return {feature.name: _value(feature, lookups[feature.name], rng) for feature in declared}


def _value(feature: Feature | CandidateFeature, lookup: Lookup, rng: np.random.Generator) -> Any:
    """A known value in JSON's types; for a number one within its buckets, or just beyond."""
    if isinstance(lookup, NumericBuckets):
        edges = lookup.boundaries if len(lookup.boundaries) else np.zeros(1)
        lowest = max(0.0, edges[0] - 1) if feature.kind == "duration" else edges[0] - 1
        return round(float(rng.uniform(lowest, edges[-1] + 1)), 3)
    known = lookup.keys if len(lookup.keys) else np.array([UNKNOWN_ID])
    if isinstance(feature, Feature) and feature.kind == "multi":
        return rng.choice(known, size=rng.integers(0, feature.max_values + 1)).tolist()
    return int(rng.choice(known))
