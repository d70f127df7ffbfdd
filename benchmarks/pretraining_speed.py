"""Marquee's training step against the plain one: same weights, same windows, same loss; then their speed.

    marquee   `foundation.trainer.Trainer.step` on windows bucketed by length, tokenising included
    plain     `benchmarks.plain_decoder` on the same windows tokenised ahead, in random batches of equally many windows

Letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.interleave import Timings, Variant, time_blocks
from benchmarks.percentiles import percentile, ratio_of_medians
from benchmarks.plain_decoder import PlainConfig, PlainModel, PlainTrainer, Window
from foundation.dataset import Dataset
from foundation.pretraining import PretrainConfig, Pretraining
from foundation.training_batches import Batch, BatchConfig, padding_share
from foundation.window import span_rows

MARQUEE, PLAIN = "marquee", "plain"
TOLERANCE = 1e-5
"""Of the relative difference in loss, and in each weight's gradient."""


@dataclass(frozen=True)
class PretrainingSpeed:
    """How long to measure.

    Attributes:
        blocks: rounds of the two variants.
        steps: timed in each block, after one that is not.
        tokens_per_batch: real tokens of a step; of the plain one's on average.
        seed: of weights, windows and batches.
    """

    blocks: int
    steps: int
    tokens_per_batch: int
    seed: int

    @property
    def num_steps(self) -> int:
        """Steps of each variant over all blocks."""
        return self.blocks * (1 + self.steps)


class Gap(NamedTuple):
    """Difference of one step's results between the two, relative to Marquee's."""

    loss: float
    gradient: float  # the worst weight's max|difference| / max|gradient|
    worst: str  # that weight's name

    def refusal(self) -> str | None:
        """Why nothing may be timed; None where both agree."""
        # Not "above": a NaN agrees with nothing.
        if not self.loss <= TOLERANCE:
            return f"losses differ by {self.loss:.2e}, above {TOLERANCE:.0e}: not timed"
        if not self.gradient <= TOLERANCE:
            return (
                f"gradients of {self.worst} differ by {self.gradient:.2e}, above {TOLERANCE:.0e}: not timed"
            )
        return None


def measure_pretraining(
    config: PretrainingSpeed, dataset: Dataset, say: Callable[[str], object]
) -> dict[str, Any]:
    """The measured part of the report; without speeds where the two don't compute the same."""
    settings = PretrainConfig(
        data=dataset.folder,
        out=Path(),  # nothing is written
        seed=config.seed,
        batch=BatchConfig(config.tokens_per_batch),
    )
    gap = compare_step(settings, dataset)
    say(f"same weights, same batch: losses differ by {gap.loss:.1e}, gradients by {gap.gradient:.1e}")
    refusal = gap.refusal()
    found = {
        "loss_difference": gap.loss,
        "gradient_difference": gap.gradient,
        "refused": {PLAIN: refusal} if refusal else {},
    }
    if refusal:
        return {**found, "tokens_per_s": {}, "ratios": {}}
    return {**found, **_time(config, Pretraining(settings, dataset), say)}


def compare_step(settings: PretrainConfig, dataset: Dataset, plain: type[PlainModel] = PlainModel) -> Gap:
    """One optimizer step of each from the same weights on the same batch, without dropout and masked ids.

    Args:
        settings: of the run that is to be timed.
        dataset: whose first batch is used.
        plain: the model that Marquee's is held to.
    """
    decoder = replace(settings.model.decoder, dropout=0.0)
    quiet = replace(
        settings,
        model=replace(settings.model, decoder=decoder),
        objective=replace(settings.objective, masked_share=0.0, masked_context=0.0),
    )
    run = Pretraining(quiet, dataset)
    _sharpen(run.trainer.model, settings.seed)
    trainer = plain_trainer(run, plain)
    batch = run.batches(0)[0]
    ours = _keep_gradients(run.trainer.model, run.trainer.optimizer)
    theirs = _keep_gradients(trainer.model, trainer.optimizer)
    loss = run.trainer.step(0, run.tokenizer, run.events, batch)
    plain_loss = trainer.step(tokenise(run, batch), run.trainer.learning_rate(0))
    gaps = {name: _relative(theirs[name], gradient) for name, gradient in ours.items()}
    # Not max(): it may drop a NaN.
    worst = list(gaps)[int(np.argmax(list(gaps.values())))]
    return Gap(abs(plain_loss - loss) / abs(loss), gaps[worst], worst)


def _sharpen(model: nn.Module, seed: int) -> None:
    """Large weights, and none that start at 0 as a whole: attention is sharp, and a wrong input or position shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.any():
                weight.mul_(3.0)
            else:
                weight.normal_(std=0.1, generator=generator)


def _keep_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Filled with the clipped gradients that the optimizer gets, by name, as it steps."""
    kept: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        for name, weight in model.named_parameters():
            kept[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()

    optimizer.register_step_pre_hook(keep)
    return kept


def _relative(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    largest = float(expected.abs().max())
    return float((actual - expected).abs().max()) / (largest or 1.0)


def plain_trainer(run: Pretraining, plain: type[PlainModel] = PlainModel) -> PlainTrainer:
    """A plain trainer of the run's sizes that starts from copies of its weights."""
    model, objective, optim = run.config.model, run.config.objective, run.config.optim
    sizes = PlainConfig(
        width=model.decoder.width,
        num_layers=model.decoder.num_layers,
        num_heads=model.decoder.num_heads,
        dropout=model.decoder.dropout,
        temperature=model.temperature,
        hidden_share=run.trainer.plan.hidden_share,
        context_share=objective.masked_context,
        num_context_columns=run.tokenizer.request_columns.stop,
        age_column=run.tokenizer.age_column,
    )
    return PlainTrainer(plain(sizes, run.trainer.model.state_dict()), optim.weight_decay, optim.clip_norm)


def tokenise(run: Pretraining, batch: Batch) -> list[Window]:
    """The windows of `batch`, each tokenised."""
    span = span_rows(batch.starts, batch.stops)
    facet_ids, item_ids = run.tokenizer.assemble(run.events, span.rows, span.previous)
    lengths = span.lengths.tolist()
    columns = (
        torch.from_numpy(ids).split(lengths) for ids in (facet_ids, item_ids, run.events.item[span.rows])
    )
    return [Window(*window) for window in zip(*columns, strict=True)]


def random_batches(batches: Sequence[Batch], rng: np.random.Generator) -> list[Batch]:
    """The windows of an epoch's `batches` in random order, equally many to a batch, about as many batches.

    So a batch holds as many tokens as before on average. Windows left over, fewer than a batch, are dropped.
    """
    starts = np.concatenate([batch.starts for batch in batches])
    stops = np.concatenate([batch.stops for batch in batches])
    order = rng.permutation(len(starts))
    size = max(1, round(len(starts) / len(batches)))
    whole = np.split(order[: len(order) // size * size], len(order) // size)
    return [Batch(starts[chosen], stops[chosen]) for chosen in whole]


def plan_steps(run: Pretraining, num_steps: int) -> dict[str, list[Batch]]:
    """The first `num_steps` batches of each variant, over as many epochs as that takes; both see the same windows."""
    rng = np.random.default_rng(run.config.seed)
    plan: dict[str, list[Batch]] = {MARQUEE: [], PLAIN: []}
    epoch = 0
    while min(map(len, plan.values())) < num_steps:
        bucketed = run.batches(epoch)
        plan[MARQUEE] += bucketed
        plan[PLAIN] += random_batches(bucketed, rng)
        epoch += 1
    return {name: batches[:num_steps] for name, batches in plan.items()}


def _time(config: PretrainingSpeed, run: Pretraining, say: Callable[[str], object]) -> dict[str, Any]:
    plan = plan_steps(run, config.num_steps)
    numbers = np.arange(config.num_steps).reshape(config.blocks, -1)
    timings = Timings()
    time_blocks(
        _variants(run, plan),
        numbers.tolist(),
        timings,
        lambda block: say(f"block {block + 1}/{config.blocks}"),
    )
    tokens = {name: np.array([batch.num_tokens for batch in plan[name]])[numbers] for name in plan}
    return {
        **speeds(tokens, {name: np.asarray(blocks) for name, blocks in timings.blocks.items()}),
        # Of the grids that attention works on; the plain one's other layers work on theirs too.
        "padding_share": {
            MARQUEE: round(padding_share(plan[MARQUEE], run.config.batch.parts), 4),
            PLAIN: round(padding_share(plan[PLAIN]), 4),
        },
        "tokens_per_step": {name: round(float(counts.mean()), 1) for name, counts in tokens.items()},
    }


def _variants(run: Pretraining, plan: dict[str, list[Batch]]) -> list[Variant]:
    """Both take step number n of their own plan, with the same learning rate."""
    last, plain = run.num_steps - 1, plain_trainer(run)
    windows = [tokenise(run, batch) for batch in plan[PLAIN]]

    def marquee_step(number: int) -> NDArray[np.float32]:
        loss = run.trainer.step(min(number, last), run.tokenizer, run.events, plan[MARQUEE][number])
        return np.array([loss], dtype=np.float32)

    def plain_step(number: int) -> NDArray[np.float32]:
        loss = plain.step(windows[number], run.trainer.learning_rate(min(number, last)))
        return np.array([loss], dtype=np.float32)

    return [Variant(MARQUEE, marquee_step, TOLERANCE), Variant(PLAIN, plain_step, TOLERANCE)]


def speeds(tokens: dict[str, NDArray], seconds: dict[str, NDArray]) -> dict[str, Any]:
    """Real tokens per second of each variant, and their ratio.

    A block's rate is its tokens over its seconds, its first step left out. Reported are medians over blocks and the
    ratio of the two, with a 95 % bootstrap interval over blocks.

    Args:
        tokens, seconds: `[blocks, steps]` by variant.
    """
    per_token = {name: seconds[name][:, 1:].sum(axis=1) / tokens[name][:, 1:].sum(axis=1) for name in tokens}
    slow, fast = ([[block] for block in per_token[name].tolist()] for name in (PLAIN, MARQUEE))
    ratio = ratio_of_medians(slow, fast)
    return {
        "tokens_per_s": {name: round(1 / percentile(blocks, 50), 1) for name, blocks in per_token.items()},
        "ratios": {"tokens_per_s_vs_plain": round(ratio.value, 3)},
        "ci95": {"tokens_per_s_vs_plain": [round(ratio.low, 3), round(ratio.high, 3)]},
    }
