"""How well a ranker ranks: logits of requests, and metrics of each task over them.

Shapes: B requests, C candidates over the batch, N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import xxhash
from numpy.typing import NDArray

from foundation.atomic import atomic_file
from foundation.library_notices import library_notices_off
from foundation.window import span_rows
from ranker.evaluation.calibration_curve import CalibrationCurve, calibration_curve
from ranker.evaluation.figures import Figures, Predictions, figures, without_nan
from ranker.evaluation.metrics import grouped_auc
from ranker.evaluation.slices import candidate_slices
from ranker.features.builder import FeatureBuilder
from ranker.features.facet_names import FacetNames
from ranker.model import BothLogits, Ranker
from ranker.rows.inputs import model_inputs
from ranker.rows.rows import Rows
from ranker.state import Mode

DUMP = "test_requests.parquet"
"""Per-request AUCs of a finished run, in its folder."""
REQUESTS_PER_BATCH = 64
REQUEST, PROFILE, HISTORY_END, CANDIDATES_HASH = "request", "profile_id", "history_end", "candidates_hash"


class ModeFigures(NamedTuple):
    """The figures of one way of scoring."""

    tasks: dict[str, Figures]
    """By task."""
    slices: dict[str, dict[str, dict[str, Figures]]]
    """By slicing, slice and task, see `ranker.evaluation.slices`."""


class Evaluation(NamedTuple):
    """The figures of a ranker on some requests."""

    modes: dict[Mode, ModeFigures]
    """By mode; the last is what `Ranker.forward` gives."""
    request_auc: dict[str, NDArray[np.float64]]
    """By task, of the last mode: AUC within each request `[B]`, NaN where one lacks a positive or a negative."""
    curves: dict[str, CalibrationCurve]
    """By task, of the last mode."""

    @property
    def metrics(self) -> dict[str, Figures]:
        """By task, of the last mode."""
        return list(self.modes.values())[-1].tasks

    def scalars(self) -> dict[str, float]:
        """Every defined figure for TensorBoard: by TASK_FIGURE, of crossing by TASK_crossing_FIGURE.

        Those of a slice are behind SLICING/SLICE/. How many requests and candidates they are of is in `to_json` alone.
        """
        found = {}
        for mode, (tasks, slices) in self.modes.items():
            infix = "" if mode == "vector" else f"_{mode}"
            parts = {
                f"{slicing}/{name}/": of for slicing, of_all in slices.items() for name, of in of_all.items()
            }
            for prefix, by_task in ({"": tasks} | parts).items():
                for task, of_task in by_task.items():
                    found |= {f"{prefix}{task}{infix}_{name}": value for name, value in of_task.items()}
        counts = ("_requests", "_candidates")
        return {
            name: value for name, value in found.items() if not (name.endswith(counts) or np.isnan(value))
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, a figure that isn't defined as None: tasks and slices of the last mode; all of each mode."""
        modes = {name: mode._asdict() for name, mode in self.modes.items()}
        return without_nan({**list(modes.values())[-1], "modes": modes})  # type: ignore[return-value]


class Scores(NamedTuple):
    """Logits `[C, N]` by mode."""

    served: dict[Mode, NDArray[np.float32]]
    """With what is for training only at its value in serving."""
    shown: dict[Mode, NDArray[np.float32]]
    """With that as it was; where there is no such feature, the same arrays."""


@torch.no_grad()
def score(model: Ranker, features: FeatureBuilder, rows: Rows) -> Scores:
    """Logits of the candidates of all requests; the model is in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    # Requests of like length share a batch, which keeps padding low; a logit doesn't depend on its batch.
    order = np.argsort(rows.history_lengths, kind="stable")
    item_vectors = model.item_vectors()
    declared = features.config.candidates
    served = _empty(model, rows)
    shown = _empty(model, rows) if declared.asked_for != declared.known else served
    offsets = rows.candidate_offsets
    for first in range(0, len(order), REQUESTS_PER_BATCH):
        batch = order[first : first + REQUESTS_PER_BATCH]
        some = rows.take(batch)
        places = span_rows(offsets[batch], offsets[batch + 1]).rows
        inputs = model_inputs(features, replace(some, candidates=declared.as_served(some.candidates)))
        state = model.encode_profile(inputs.profile, item_vectors)
        _put(served, places, model.score_both(state, inputs.candidates, item_vectors))
        if shown is not served:
            candidates = model_inputs(features, some).candidates
            _put(shown, places, model.score_both(state, candidates, item_vectors))
    model.train(was_training)
    return Scores(served, shown)


def _empty(model: Ranker, rows: Rows) -> dict[Mode, NDArray[np.float32]]:
    shape = (len(rows.item_rows), len(model.tasks))
    return {mode: np.empty(shape, dtype=np.float32) for mode in modes_of(model)}


def _put(logits: dict[Mode, NDArray[np.float32]], places: NDArray[np.int64], found: BothLogits) -> None:
    for mode, all_logits in logits.items():
        all_logits[places] = getattr(found, mode).numpy()


def modes_of(model: Ranker) -> tuple[Mode, ...]:
    """The ways in which a ranker scores; the last is what `Ranker.forward` gives."""
    return ("vector", "crossing") if model.config.crossing_layers else ("vector",)


def evaluate(
    model: Ranker,
    features: FeatureBuilder,
    rows: Rows,
    log_rates: Sequence[float] = (),
    names: FacetNames | None = None,
) -> Evaluation:
    """Figures of every task over its labelled candidates, by mode and slice.

    Args:
        model: unsharded.
        features: of the ranker, which may differ from the builder that made the rows in its recent items.
        rows: B requests.
        log_rates: of each task, see `TrainedRanker`; none given: 0 each.
        names: what slices of facets are called.
    """
    with library_notices_off():
        scores = score(model, features, rows)
    slices = candidate_slices(rows, features.tokenizer, names)
    rates = tuple(log_rates) or (0.0,) * len(model.tasks)
    modes, labelled = {}, {}
    for mode in scores.served:
        found = ModeFigures({}, {slicing: {name: {} for name in parts} for slicing, parts in slices.items()})
        of_mode = _predictions(scores.served[mode], scores.shown[mode], rows, rates)
        for task, predictions, mask in zip(model.tasks, of_mode, rows.mask.T, strict=True):
            labelled[task] = predictions.only(mask)
            found.tasks[task] = figures(labelled[task])
            for slicing, parts in slices.items():
                for name, members in parts.items():
                    found.slices[slicing][name][task] = figures(predictions.only(mask & members))
        modes[mode] = found
    return Evaluation(
        modes,
        {task: grouped_auc(each.logits, each.labels, each.offsets) for task, each in labelled.items()},
        {task: calibration_curve(each.probs, each.labels, each.log_rate) for task, each in labelled.items()},
    )


def _predictions(
    served: NDArray[np.float32], shown: NDArray[np.float32], rows: Rows, log_rates: Sequence[float]
) -> list[Predictions]:
    """Of each task, all candidates."""
    logits = (served.T.astype(np.float64), shown.T.astype(np.float64))
    return [
        Predictions(labels=labels, offsets=rows.candidate_offsets, logits=mine, shown=as_shown, log_rate=rate)
        for mine, as_shown, labels, rate in zip(*logits, rows.labels.T, log_rates, strict=True)
    ]


def write_request_auc(path: Path, rows: Rows, evaluation: Evaluation) -> None:
    """Writes a row per request: number, profile, place in the history, hash of candidates, AUC of each task."""
    starts, stops = rows.candidate_offsets[:-1], rows.candidate_offsets[1:]
    columns: dict[str, Any] = {
        REQUEST: np.arange(len(rows)),
        PROFILE: rows.profile_id,
        HISTORY_END: rows.histories.num_events_before + rows.history_lengths,
        # Whatever their order, which no AUC depends on.
        CANDIDATES_HASH: [
            xxhash.xxh3_64_hexdigest(np.sort(rows.item_rows[start:stop].astype(np.int64)).tobytes())
            for start, stop in zip(starts, stops, strict=True)
        ],
    }
    table = pl.DataFrame(columns | {f"auc_{task}": values for task, values in evaluation.request_auc.items()})
    with atomic_file(path) as partial:
        table.fill_nan(None).write_parquet(partial)
