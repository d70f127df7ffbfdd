"""What training hides of candidates, so that titles without a past are ranked well.

Shapes: B requests, C candidates over the batch, I item rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY
from ranker.features.inputs import CandidateMarks
from ranker.rows.rows import Rows, days_since_launch

FRESH_DAYS, YOUNG_DAYS = 7, 28
"""From its launch on, a title is fresh for so many days, then young up to so many."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Shares of candidates of which something is hidden in training; their labels stay.

    Attributes:
        hidden_candidates: become an item that the catalogue lacks. It gives the out-of-vocabulary row its meaning,
            "some title": without it, such an item would be ranked by weights that no label has touched.
        unseen_candidates: become titles that were never seen: what is learned of their ids is hidden, and how popular
            they are; their metadata stay. Candidate-id randomisation (PinFM, arXiv 2507.12704: 0.1) with the id that
            new titles have.
        dropped_if_fresh: of titles launched less than 7 days before the request, so many are ranked without what the
            decoder says of them (PinFM's item-age dependent dropout: 0.7). Where launches are unknown, none are.
        dropped_if_young: the same of titles launched from 7 to 28 days before (PinFM: 0.5).
    """

    hidden_candidates: float = 0.01
    unseen_candidates: float = 0.1
    dropped_if_fresh: float = 0.7
    dropped_if_young: float = 0.5

    def __post_init__(self) -> None:
        for each in fields(self):
            share = getattr(self, each.name)
            if not 0 <= share < 1:
                raise ValueError(f"augmentation.{each.name} is {share}; it must be in [0, 1)")


def augment(
    rows: Rows, config: AugmentationConfig, launched_at: NDArray[np.int64] | None, rng: np.random.Generator
) -> tuple[Rows, CandidateMarks]:
    """The rows with some candidates unknown, and marks of what else is hidden.

    Args:
        rows: B requests.
        config: how much.
        launched_at: `[I]` unix seconds, `Vocabularies.launched_at`; None: launches are unknown.
        rng: of this part of this step.
    """
    hidden, unseen, dropped = rng.random((3, len(rows.item_rows)))
    item_rows = np.where(hidden < config.hidden_candidates, OUT_OF_VOCABULARY, rows.item_rows)
    never_seen = (unseen < config.unseen_candidates) & (item_rows >= FIRST_KNOWN)
    without_decoder = dropped < _dropped_share(rows, config, launched_at)
    marks = CandidateMarks(torch.from_numpy(never_seen), torch.from_numpy(without_decoder))
    return replace(rows, item_rows=item_rows), marks


def join_marks(parts: Sequence[CandidateMarks]) -> CandidateMarks:
    """Marks of several rows, one after another; at least one part."""
    return CandidateMarks(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _dropped_share(
    rows: Rows, config: AugmentationConfig, launched_at: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """`[C]`, how probable it is that a candidate is ranked without the decoder, by its age at the request."""
    days = days_since_launch(rows, launched_at)
    return np.select(
        [days < FRESH_DAYS, days < YOUNG_DAYS], [config.dropped_if_fresh, config.dropped_if_young], 0.0
    )
