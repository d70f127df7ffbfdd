"""The parity gate: one ranker gives the same logits whole, split and exported.

    unsplit    one row per candidate through the ranker itself: the decoder runs once per candidate
    split      the two halves as modules, after the swaps of export
    exported   the model folder as the server loads it, from raw wire arrays on

Shapes: B requests, R rows, C candidates over the batch, N tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.window import span_rows
from ranker.features.builder import FeatureBuilder
from ranker.features.histories import Histories
from ranker.model import Ranker
from ranker.state import Mode
from serving.contract import Contract
from serving.split import Halves
from serving.wire import histories_of, model_inputs

TOLERANCE = 1e-5
"""Of max|difference| / max(1, max|logit|), in float32."""

Arrays = Mapping[str, NDArray]
"""Wire arrays of one call."""
Rank = Callable[[Arrays], Tensor]
"""From wire arrays to logits `[C, N]`."""


class ParityError(RuntimeError):
    """Two ways of computing the same logits disagree; nothing is exported."""


@dataclass(frozen=True)
class Parity:
    """Largest difference from the unsplit ranker over some calls, see `difference`."""

    split: float
    exported: float

    def require(self, tolerance: float = TOLERANCE) -> None:
        """Raise `ParityError` if one of them is above `tolerance`."""
        for name, found in asdict(self).items():
            if not found <= tolerance:
                raise ParityError(
                    f"parity: {name} logits differ from unsplit ones by {found:.3g}; the limit is {tolerance:g}"
                )


def measure(calls: Iterable[Arrays], unsplit: Rank, split: Rank, exported: Rank) -> Parity:
    """Compare two ways of ranking with the unsplit one on every call."""
    worst = {"split": 0.0, "exported": 0.0}
    for arrays in calls:
        reference = unsplit(arrays)
        for name, rank in (("split", split), ("exported", exported)):
            worst[name] = max(worst[name], difference(reference, rank(arrays)))
    return Parity(**worst)


def difference(reference: Tensor, other: Tensor) -> float:
    """max|reference - other| / max(1, max|reference|); infinite if shapes differ or a value isn't finite."""
    if reference.shape != other.shape or not bool(torch.isfinite(other).all()):
        return float("inf")
    return float((reference - other).abs().max() / reference.abs().max().clamp(min=1))


def unsplit_rank(
    ranker: Ranker, features: FeatureBuilder, contract: Contract, mode: Mode | None = None
) -> Rank:
    """Ranks with each candidate as a request of its own, history and all; `mode` as in `Ranker.score`."""

    @torch.inference_mode()
    def rank(arrays: Arrays) -> Tensor:
        lengths = arrays["candidate_lengths"]
        rows = repeat_requests(histories_of(contract, arrays), np.repeat(np.arange(len(lengths)), lengths))
        _, candidates = model_inputs(contract, features, arrays)
        one_each = candidates.one_request_each(0, len(candidates.item_rows))
        items = ranker.item_vectors()
        return ranker.score(
            ranker.encode_profile(features.profile_inputs(rows), items), one_each, items, mode
        )

    return rank


def split_rank(halves: Halves, features: FeatureBuilder, contract: Contract) -> Rank:
    """Ranks with the two halves as modules."""

    @torch.inference_mode()
    def rank(arrays: Arrays) -> Tensor:
        inputs, candidates = model_inputs(contract, features, arrays)
        return halves.rank(inputs, candidates)

    return rank


def repeat_requests(histories: Histories, rows: NDArray[np.int64]) -> Histories:
    """Requests `rows` `[R]` of a batch, in that order, each with its whole history."""
    offsets = np.concatenate(([0], np.cumsum(histories.history_lengths)))
    events = span_rows(offsets[rows], offsets[rows + 1]).rows
    return Histories(
        history_lengths=histories.history_lengths[rows],
        num_events_before=histories.num_events_before[rows],
        item_id=histories.item_id[events],
        timestamp=histories.timestamp[events],
        facets={name: values[events] for name, values in histories.facets.items()},
        request_timestamp=histories.request_timestamp[rows],
        request_facets={name: values[rows] for name, values in histories.request_facets.items()},
        profile_features={name: values[rows] for name, values in histories.profile_features.items()},
    )
