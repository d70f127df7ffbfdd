"""A ranker and its feature builder from a dataset and a foundation release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.release import Release
from foundation.split import TRAIN, profile_roles
from ranker.features.builder import FeatureBuilder, FeatureConfig, NumberScale
from ranker.features.item_features import build_item_features, mean_and_deviation
from ranker.features.recent_items import RecentItems
from ranker.model import Ranker, RankerConfig


class Assembly(NamedTuple):
    """A model and the builder of its inputs."""

    model: Ranker
    features: FeatureBuilder


def assemble_ranker(
    config: RankerConfig, dataset: Dataset, release: Release, tasks: Sequence[str]
) -> Assembly:
    """An untrained ranker on `release`, whose model becomes part of it (and is trained in place).

    The pooled tower takes the release's vocabularies and window, and leaves its decoder alone.

    Args:
        config: sizes and the kind of profile tower.
        dataset: whose catalogue the ranker serves; counts and scales come from its training part alone.
        release: trained on `dataset` (`foundation.release.check_dataset`, `check_cut`).
        tasks: names of the N tasks.

    Raises:
        DataError: the release's decoder reads what a ranker has not.
    """
    items = build_item_features(dataset, release.vocabularies)
    pooled = config.tower == "pooled"
    if not pooled and release.model.config.decoder.block == "hstu":
        raise DataError(
            "the release's decoder.block is \"hstu\", which reads times that a ranker's profile inputs lack; "
            'pre-train with "plain" or "gated"'
        )
    features = FeatureBuilder(
        FeatureConfig(release.model.config.window, number_scales(dataset)),
        release.tokenizer,
        RecentItems.of_catalogue(config.recent_items, items) if pooled else None,
    )
    model = Ranker(config, features.fields, items, tasks, None if pooled else release.model)
    return Assembly(model, features)


def number_scales(dataset: Dataset) -> tuple[NumberScale, ...]:
    """Scales of the numeric profile features, from training profiles."""
    training = profile_roles(dataset) == TRAIN
    return tuple(
        NumberScale(feature.name, *mean_and_deviation(dataset.profiles.features[feature.name][training]))
        for feature in dataset.schema.profile_features
        if feature.kind == "numeric"
    )
