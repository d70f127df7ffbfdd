"""The parity gate: one ranker gives the same logits whole, split and exported.

    unsplit    one row per candidate through the ranker itself: the decoder runs once per candidate
    split      the two halves as modules, after the swaps of export
    exported   the model folder as the server loads it, from raw wire arrays on

An int8 export is held to its halves as modules, int8 by plain operators (`serving.quantise`), and its difference from
the unsplit ranker is told beside. Sums of int8 are exact, but what is rounded to int8 comes from float32 sums whose
order differs: a value halfway between two whole numbers goes to the one here and to the other there. In a small model
that is rare, and logits agree to 1e-6. In a large one it is certain, and later layers spread it: at width 256 with
4 layers and 256 tokens, noise of 1e-7 in what is rounded moved logits by .005 to .020, where int8 itself had moved
them by .012 to .035. So this limit tells a wrong kernel from a right one and no more; what the operators make of
one and the same input is held far closer, by their tests.

Shapes: B requests, R rows, C candidates over the batch, N tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

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
INT8_TOLERANCE = 5e-2
"""The same where linear layers are int8; of int8 rows alone it is `TOLERANCE`."""

Arrays = Mapping[str, NDArray]
"""Wire arrays of one call."""
Rank = Callable[[Arrays], Tensor]
"""From wire arrays to logits `[C, N]`."""


class ParityError(RuntimeError):
    """Two ways of computing the same logits disagree; nothing is exported."""


@dataclass(frozen=True)
class Parity:
    """Largest difference from the reference over some calls, see `difference`.

    Attributes:
        split: of the two halves as modules.
        exported: of the model folder.
        from_float32: of the model folder, from the unsplit ranker; None: that is the reference.
    """

    split: float
    exported: float
    from_float32: float | None = None

    def require(self, tolerance: float = TOLERANCE) -> None:
        """Raise `ParityError` if one of them is above `tolerance`."""
        reference = "unsplit" if self.from_float32 is None else "the reference's int8"
        for name, found in (("split", self.split), ("exported", self.exported)):
            if not found <= tolerance:
                raise ParityError(
                    f"parity: {name} logits differ from {reference} ones by {found:.3g}; the limit is {tolerance:g}"
                )


def measure(
    calls: Iterable[Arrays], unsplit: Rank, split: Rank, exported: Rank, reference: Rank | None = None
) -> Parity:
    """Compare two ways of ranking on every call with the unsplit one, or with an int8 `reference`."""
    worst: dict[str, float] = {}
    for arrays in calls:
        expected, found = unsplit(arrays), exported(arrays)
        differences = {"exported": difference(expected, found)}
        if reference is not None:
            expected = reference(arrays)
            differences = {
                "from_float32": differences["exported"],
                "exported": difference(expected, found),
            }
        differences["split"] = difference(expected, split(arrays))
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in differences.items()}
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
