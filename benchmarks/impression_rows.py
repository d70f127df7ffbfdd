"""Training on request rows against one row per impression: the same model, losses and candidates.

    request_rows       a row per request: its profile side once, its candidates jagged beside it
    impression_rows    a row per candidate, each with the whole profile side of its request, as most training data are

Shapes: B requests, C candidates over the batch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.interleave import Timings, Variant, time_blocks
from benchmarks.percentiles import percentile, ratio_of_medians
from foundation.dataset import Dataset
from foundation.dropout import set_dropout
from foundation.release import Release
from ranker.assembly import Assembly, assemble_ranker
from ranker.model import RankerConfig
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks
from ranker.training.losses import LossConfig
from ranker.training.optim import RankerOptimConfig
from ranker.training.targets import targets
from ranker.training.trainer import RankerTrainer

REQUEST_ROWS, IMPRESSION_ROWS = "request_rows", "impression_rows"
TOLERANCE = 1e-5
"""Of the relative difference in loss, and in each weight's update direction (its first moment)."""


@dataclass(frozen=True)
class ImpressionSpeed:
    """How long to measure.

    Attributes:
        blocks: rounds of the two variants.
        steps: timed in each block, after one that is not.
        requests: of a step.
        candidates: of a request.
        seed: of requests and initial weights.
    """

    blocks: int
    steps: int
    requests: int
    candidates: int
    seed: int


NUM_COMPARED = 3
"""Steps after which losses must still agree: that takes equal updates, those of the embedding tables too."""


class Batches(NamedTuple):
    """The same steps in both forms."""

    request_rows: list[Rows]
    impression_rows: list[Rows]


class Gap(NamedTuple):
    """How far the two are apart after the same steps."""

    loss: float
    """Largest relative difference of a step's total loss."""
    gradient: float
    """Of the first step: the worst weight's max|difference| / max|gradient|."""


def one_row_per_impression(rows: Rows) -> Rows:
    """Each of the C candidates as the only one of a request of its own, which repeats all that the request has."""
    request = np.repeat(np.arange(len(rows)), np.diff(rows.candidate_offsets))
    repeated = rows.take(request)
    return dataclasses.replace(
        repeated,
        candidate_offsets=np.arange(len(request) + 1),
        item_rows=rows.item_rows,
        candidates=rows.candidates,
        labels=rows.labels,
        mask=rows.mask,
    )


def num_bytes(part: object) -> int:
    """Bytes of the arrays and tensors that a nest of tuples and rows holds."""
    if isinstance(part, Rows):
        return sum(num_bytes(getattr(part, field.name)) for field in dataclasses.fields(part))
    if isinstance(part, np.ndarray | Tensor):
        return int(part.nbytes)
    return sum(num_bytes(each) for each in part) if isinstance(part, tuple) else 0


def measure_impressions(
    config: ImpressionSpeed, dataset: Dataset, release: Release, say: Callable[[str], object]
) -> dict[str, Any]:
    """The measured part of the report; without speeds where the two don't train the same."""
    tasks = [task.name for task in load_tasks(dataset.folder / "schema.toml")]
    torch.manual_seed(config.seed)
    assembly = assemble_ranker(RankerConfig(), dataset, release, tasks)
    batches = _batches(config, dataset, assembly)
    gap = compare(assembly, batches)
    say(f"same weights, same batches: losses differ by {gap.loss:.1e}, gradients by {gap.gradient:.1e}")
    # Not "above": a NaN agrees with nothing.
    agree = gap.loss <= TOLERANCE and gap.gradient <= TOLERANCE
    refused = {} if agree else {IMPRESSION_ROWS: f"differs by more than {TOLERANCE:.0e}: not timed"}
    found = {"loss_difference": gap.loss, "gradient_difference": gap.gradient, "refused": refused}
    if refused:
        return {**found, "candidates_per_s": {}, "ratios": {}}
    sizes = {
        name: {
            "rows": int(np.mean([num_bytes(rows) for rows in each])),
            "model_inputs": num_bytes(model_inputs(assembly.features, each[0])),
        }
        for name, each in batches._asdict().items()
    }
    return {**found, "bytes_per_batch": sizes, **_time(config, assembly, batches, say)}


def compare(assembly: Assembly, batches: Batches) -> Gap:
    """The same first steps in both forms from the same weights, without dropout."""
    losses: list[list[float]] = []
    gradients: list[dict[str, Tensor]] = []
    for steps in batches:
        quiet = copy.deepcopy(assembly)
        set_dropout(quiet.model, 0.0)
        trainer = _trainer(quiet, NUM_COMPARED)
        losses.append([_step(trainer, quiet, 0, steps[0])])
        # AdamW's first moment after one step is the gradient, times a constant.
        moments = trainer.state()["optimizer"]["dense"]
        gradients.append({name: moment["exp_avg"].clone() for name, moment in moments.items()})
        losses[-1] += [_step(trainer, quiet, number, steps[number]) for number in range(1, NUM_COMPARED)]
    ours, theirs = (np.asarray(each) for each in losses)
    worst = [_relative(gradients[1][name], gradient) for name, gradient in gradients[0].items()]
    return Gap(float(np.max(np.abs(theirs - ours) / np.abs(ours))), float(np.max(worst)))


def _batches(config: ImpressionSpeed, dataset: Dataset, assembly: Assembly) -> Batches:
    """As many steps as all blocks take, of random training requests."""
    tasks = load_tasks(dataset.folder / "schema.toml")
    settings = RequestConfig(candidates=config.candidates, per_profile=1)
    requests = build_requests(dataset, tasks, "train", settings, config.seed)
    num_steps = max(NUM_COMPARED, config.blocks * (1 + config.steps))
    rng = np.random.default_rng(config.seed)
    maker, by_request = RowMaker(dataset, assembly.features), []
    for _ in range(num_steps):
        chosen = rng.choice(len(requests.profile), min(config.requests, len(requests.profile)), replace=False)
        by_request.append(maker.rows(requests.take(chosen)))
    return Batches(by_request, [one_row_per_impression(rows) for rows in by_request])


def _trainer(assembly: Assembly, num_steps: int) -> RankerTrainer:
    return RankerTrainer(assembly.model, RankerOptimConfig(), LossConfig(), None, num_steps, seed=0)


def _step(trainer: RankerTrainer, assembly: Assembly, number: int, rows: Rows) -> float:
    """One optimizer step, from rows in memory on; its total loss."""
    wanted = targets(rows, LossConfig().tokens_per_request)
    return trainer.total(trainer.step(number, model_inputs(assembly.features, rows), wanted))


def _time(
    config: ImpressionSpeed, assembly: Assembly, batches: Batches, say: Callable[[str], object]
) -> dict[str, Any]:
    numbers = np.arange(config.blocks * (1 + config.steps)).reshape(config.blocks, -1)
    timings = Timings()
    variants = [_variant(name, copy.deepcopy(assembly), each) for name, each in batches._asdict().items()]
    time_blocks(variants, numbers.tolist(), timings, lambda block: say(f"block {block + 1}/{config.blocks}"))
    candidates = np.array([len(rows.item_rows) for rows in batches.request_rows])[numbers]
    return speeds(candidates, {name: np.asarray(blocks) for name, blocks in timings.blocks.items()})


def _variant(name: str, assembly: Assembly, batches: list[Rows]) -> Variant:
    trainer = _trainer(assembly, len(batches))

    def step(number: int) -> NDArray[np.float32]:
        return np.array([_step(trainer, assembly, number, batches[number])], dtype=np.float32)

    return Variant(name, step, TOLERANCE)


def speeds(candidates: NDArray[np.int64], seconds: dict[str, NDArray]) -> dict[str, Any]:
    """Candidates per second of both, and their ratio with a 95 % bootstrap interval over blocks.

    Args:
        candidates: `[blocks, steps]`, of either.
        seconds: `[blocks, steps]` by variant; a block's first step is left out.
    """
    kept = candidates[:, 1:].sum(axis=1)
    per_candidate = {name: each[:, 1:].sum(axis=1) / kept for name, each in seconds.items()}
    slow, fast = ([[block] for block in per_candidate[name]] for name in (IMPRESSION_ROWS, REQUEST_ROWS))
    ratio = ratio_of_medians(slow, fast)
    name = "candidates_per_s_vs_impression_rows"
    return {
        "candidates_per_s": {each: round(1 / percentile(s, 50), 1) for each, s in per_candidate.items()},
        "ratios": {name: round(ratio.value, 3)},
        "ci95": {name: [round(ratio.low, 3), round(ratio.high, 3)]},
    }


def _relative(actual: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return float((actual - expected).abs().max()) / largest if largest else 0.0
