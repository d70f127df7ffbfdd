"""From the rows of a step to what the model reads and is told.

Shapes: B requests, C candidates over the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ranker.features.builder import FeatureBuilder
from ranker.model import RankerInputs
from ranker.rows.inputs import model_inputs
from ranker.rows.loader import Share
from ranker.rows.rows import join
from ranker.training.augmentation import AugmentationConfig, augment, join_marks
from ranker.training.losses import LossConfig
from ranker.training.targets import HeadLabels, Targets, targets

# What a stream of random numbers is for, see `ranker.rows.plan`.
_AUGMENTATION = 301


class Batch(NamedTuple):
    """One process' part of a step."""

    inputs: RankerInputs
    targets: Targets
    num_requests: int
    num_candidates: int
    skipped: dict[str, int]
    """See `ranker.rows.loader.Share`."""


class BatchMaker:
    """Makes batches of shares; what is random follows from seed, step and lane, so not from who reads the lane.

    Args:
        features: of the ranker.
        loss_config: what the sequence objectives ask for.
        labels_of_heads: see `ranker.training.targets`.
        augmentation_config: what is hidden of candidates.
        seed: of what is hidden.
    """

    def __init__(
        self,
        features: FeatureBuilder,
        loss_config: LossConfig,
        labels_of_heads: HeadLabels | None,
        augmentation_config: AugmentationConfig,
        seed: int,
    ) -> None:
        self.features = features
        self.loss = loss_config
        self.labels_of_heads = labels_of_heads
        self.augmentation = augmentation_config
        self.seed = seed
        self._launched_at = features.tokenizer.vocabularies.launched_at

    def batch(self, share: Share) -> Batch:
        """Of one step."""
        parts = [
            augment(
                rows,
                self.augmentation,
                self._launched_at,
                np.random.default_rng((self.seed, _AUGMENTATION, share.step, lane)),
            )
            for lane, rows in share.lanes
        ]
        rows, marks = join([rows for rows, _ in parts]), join_marks([marks for _, marks in parts])
        told = targets(rows, self.loss.tokens_per_request, self.loss.multi_token, self.labels_of_heads)
        inputs = model_inputs(self.features, rows)._replace(marks=marks)
        return Batch(inputs, told, len(rows), len(rows.item_rows), share.skipped)
