"""A ranker from a foundation release and the features of its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.release import Release
from foundation.split import TRAIN, profile_roles
from ranker.features.builder import FeatureBuilder, FeatureConfig, NumberScale
from ranker.features.candidate_features import CandidateFeatures
from ranker.features.item_features import ItemFeatures, build_item_features, mean_and_deviation
from ranker.features.recent_items import RecentItems
from ranker.model import Ranker, RankerConfig


class DataFeatures(NamedTuple):
    """What is known of a dataset before there is a ranker: it is kept with request rows."""

    builder: FeatureBuilder
    """Without bags of recent items, which are a ranker's affair."""
    items: ItemFeatures


class Assembly(NamedTuple):
    """A model and the builder of its inputs."""

    model: Ranker
    features: FeatureBuilder


def assemble_on(config: RankerConfig, data: DataFeatures, release: Release, tasks: Sequence[str]) -> Assembly:
    """An untrained ranker on `release`, whose model becomes part of it (and is trained in place).

    The pooled tower takes the release's vocabularies and window, and leaves its decoder alone.

    Args:
        config: sizes and the kind of profile tower.
        data: made with `release`.
        release: a foundation release.
        tasks: names of the N tasks.

    Raises:
        DataError: the release's decoder reads what a ranker has not.
    """
    pooled = config.tower == "pooled"
    if not pooled and release.model.config.decoder.block == "hstu":
        raise DataError(
            "the release's decoder.block is \"hstu\", which reads times that a ranker's profile inputs lack; "
            'pre-train with "plain" or "gated"'
        )
    builder, items = data
    if pooled:
        recent = RecentItems.of_catalogue(config.recent_items, items)
        builder = FeatureBuilder(builder.config, builder.tokenizer, recent)
    model = Ranker(config, builder.fields, items, tasks, None if pooled else release.model)
    return Assembly(model, builder)


def assemble_ranker(
    config: RankerConfig, dataset: Dataset, release: Release, tasks: Sequence[str]
) -> Assembly:
    """`assemble_on` the features of a dataset that `release` was trained on, without candidate features."""
    return assemble_on(config, row_features(dataset, release), release, tasks)


def row_features(
    dataset: Dataset, release: Release, candidates: CandidateFeatures | None = None
) -> DataFeatures:
    """The feature builder that makes request rows, without bags of recent items, and features of every item row.

    Args:
        dataset: scales and counts come from its training part alone.
        release: that can read it (`foundation.release.check_readable`).
        candidates: what training requests told of the candidate features.
    """
    config = FeatureConfig(
        release.model.config.window, number_scales(dataset), candidates or CandidateFeatures()
    )
    return DataFeatures(
        FeatureBuilder(config, release.tokenizer), build_item_features(dataset, release.vocabularies)
    )


def number_scales(dataset: Dataset) -> tuple[NumberScale, ...]:
    """Scales of the numeric profile features, from training profiles."""
    training = profile_roles(dataset) == TRAIN
    return tuple(
        NumberScale(feature.name, *mean_and_deviation(dataset.profiles.features[feature.name][training]))
        for feature in dataset.schema.profile_features
        if feature.kind == "numeric"
    )
