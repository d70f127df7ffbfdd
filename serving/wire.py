"""The contract of a trained ranker, and the way from its wire arrays to model inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from numpy.typing import NDArray

from foundation.merging import way_of
from foundation.schema import Feature, Schema
from ranker.features.builder import FeatureBuilder
from ranker.features.candidate_features import CandidateFeature
from ranker.features.histories import Histories
from ranker.features.inputs import CandidateInputs, ProfileInputs
from serving.contract import MODEL, Contract, Field, Limits
from serving.wire_input import Dtype


def contract_of(features: FeatureBuilder, tasks: Mapping[str, float], max_candidates: int) -> Contract:
    """The contract under which a ranker is served.

    Args:
        features: what makes its inputs.
        tasks: the log rate of each task by its name, in the order of the logits' columns.
        max_candidates: of a request.
    """
    schema, window = features.tokenizer.schema, features.config.window
    return Contract(
        model=MODEL,
        facets=facet_fields(schema),
        context=_fields(schema.facets_of("when", "where")),
        profile=_fields(schema.profile_features),
        tasks=tuple(tasks),
        log_rates=tuple(tasks.values()),
        limits=Limits(window=window.window, block=window.block, max_candidates=max_candidates),
        merge_adjacent=schema.merge_adjacent,
        candidate=tuple(
            Field(each.feature.name, _dtype(each.feature)) for each in features.config.candidates.asked_for
        ),
    )


def facet_fields(schema: Schema) -> tuple[Field, ...]:
    """The facets of events as they travel, each with what a merged event has of it."""
    return tuple(replace(_field(facet), merged=way_of(facet)) for facet in schema.facets)


def histories_of(contract: Contract, arrays: Mapping[str, NDArray]) -> Histories:
    """Validated wire arrays of one call, by their names in the feature builder; nothing is copied."""
    return Histories(
        history_lengths=arrays["history_lengths"],
        num_events_before=arrays["num_events_before"],
        item_id=arrays["history.item_id"],
        timestamp=arrays["history.timestamp"],
        facets={field.name: arrays[f"history.{field.name}"] for field in contract.facets},
        request_timestamp=arrays["request.timestamp"],
        request_facets={field.name: arrays[f"request.{field.name}"] for field in contract.context},
        profile_features={field.name: arrays[f"profile.{field.name}"] for field in contract.profile},
    )


def model_inputs(
    contract: Contract, features: FeatureBuilder, arrays: Mapping[str, NDArray]
) -> tuple[ProfileInputs, CandidateInputs]:
    """What the two halves read, of validated wire arrays of one call."""
    return (
        features.profile_inputs(histories_of(contract, arrays)),
        features.candidate_inputs(
            arrays["candidate.item_id"],
            arrays["candidate_lengths"],
            {field.name: arrays[f"candidate.{field.name}"] for field in contract.candidate},
        ),
    )


def _fields(declared: Iterable[Feature]) -> tuple[Field, ...]:
    return tuple(map(_field, declared))


def _field(feature: Feature) -> Field:
    return Field(
        feature.name,
        _dtype(feature),
        feature.max_values if feature.kind == "multi" else None,
    )


def _dtype(feature: Feature | CandidateFeature) -> Dtype:
    return "FP32" if feature.is_number else "INT64"
