"""What a release predicts of held-out profiles: its heads' losses and how it ranks items, profile by profile.

Letters: P held-out profiles, T tokens of one of them, D model width, C classes of a head, I item rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.dataset import Dataset
from foundation.intervals import mean_intervals
from foundation.layout import layout
from foundation.leave_one_out import profile_figures, ranks
from foundation.objectives.heads import Heads
from foundation.objectives.labels import label_loss, label_shares, token_labels
from foundation.release import Release
from foundation.split import TEST, profile_roles
from foundation.tokens import EventIds
from foundation.training_batches import training_histories
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import Span, span_rows, window_start

ITEM_METRICS = ("ndcg@10", "mrr", "loss")
"""Of the next item, over every event of a profile's latest window; the loss in nats."""


class HeldOut(NamedTuple):
    """Sums over the tokens of each held-out profile, and over how many tokens: float64 `[P, 2]` each, by name."""

    item: dict[str, NDArray[np.float64]]  # by ITEM_METRICS
    heads: dict[str, NDArray[np.float64]]  # cross entropy, in nats
    marginals: dict[str, NDArray[np.float64]]  # that of predicting training frequencies
    marginal_loss: dict[str, float]  # means, as `Heads.marginal_loss` gives them


@torch.no_grad()
def held_out(release: Release, dataset: Dataset) -> HeldOut:
    """Figures of the test profiles of `dataset`, from one run of the decoder over the latest window of each."""
    model, tokenizer, heads = release.model, release.tokenizer, release.heads
    raw = dataset.events
    events = tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    tested = _tested_spans(release, dataset)
    marginals, marginal_loss = ({}, {}) if heads is None else _marginals(release, dataset, events, tested)
    items = model.item_vectors()
    item: dict[str, list[tuple[float, float]]] = {name: [] for name in ITEM_METRICS}
    of_heads = {name: [] for name in marginals}
    of_marginals = {name: [] for name in marginals}
    for first, span in tested:
        facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
        x_TD = model.tokens(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), items)
        where, times = layout(torch.from_numpy(span.lengths)), torch.from_numpy(events.timestamp[span.rows])
        # Heads read what the objective gives them: representations before any intent.
        hidden_TD = model.representations(x_TD, where, times)[-1]
        if heads is not None:
            labels, logits = _labels(heads, release, events, span), heads(hidden_TD)
            for name, log_shares_C in marginals.items():
                of_heads[name].append(_summed(logits[name], labels[name]))
                constant_TC = log_shares_C.expand(len(span.rows), -1)
                of_marginals[name].append(_summed(constant_TC, labels[name]))
        hidden_TD = hidden_TD if model.intent is None else model.intent(hidden_TD)[0]
        figures = _item_figures(model.logits(hidden_TD, items.vectors), events, first, span.rows)
        for name, figure in figures.items():
            item[name].append(figure)
    return HeldOut(_arrays(item), _arrays(of_heads), _arrays(of_marginals), marginal_loss)


def difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """How much higher the mean over all tokens is, and its 95 % interval over profiles.

    The mean over tokens is a ratio of sums over profiles, total / count. Drawn again, it moves as the mean over
    profiles of its linear part, mean + (total - mean * count) / (count of an average profile), whose interval this is.

    Args:
        ours, theirs: sums and counts of the same tokens, `[P, 2]`.
    """
    total_P, count_P = ours[:, 0] - theirs[:, 0], ours[:, 1]
    mean = float(total_P.sum() / count_P.sum())
    linear_P = mean + (total_P - mean * count_P) / count_P.mean()
    return mean, mean_intervals({"difference": linear_P})["difference"]


def _tested_spans(release: Release, dataset: Dataset) -> list[tuple[int, Span]]:
    """First row of each test profile, and its latest window; of profiles with a history."""
    window = release.model.config.window
    kept = (profile_roles(dataset) == TEST) & (np.diff(dataset.offsets) > 1)
    firsts, stops = dataset.offsets[:-1][kept], dataset.offsets[1:][kept]
    starts = firsts + window_start(stops - 1 - firsts, window.window, window.block)
    return [
        (int(first), span_rows(np.array([start]), np.array([stop])))
        for first, start, stop in zip(firsts, starts, stops, strict=True)
    ]


def _marginals(
    release: Release, dataset: Dataset, events: EventIds, tested: list[tuple[int, Span]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Logs of training frequencies `[C]`, and their mean loss on the tested tokens, by head."""
    heads = release.heads
    assert heads is not None
    histories = training_histories(dataset)
    span = span_rows(histories.first_row, histories.first_row + histories.num_events)
    training = _labels(heads, release, events, span)
    each = [_labels(heads, release, events, span) for _, span in tested]
    labels = {name: torch.cat([of_one[name] for of_one in each]) for name in heads.names}
    logs = {}
    for label in heads.labels:
        seen_C, tested_C = (label_shares(of[label.name], label.num_classes) for of in (training, labels))
        # As in `Heads.marginal_loss`: a class that only tested tokens have counts as seen once.
        seen_C = torch.where((seen_C == 0) & (tested_C > 0), 1.0, seen_C)
        logs[label.name] = (seen_C / seen_C.sum()).clamp_min(torch.finfo(torch.float64).tiny).log()
    return logs, heads.marginal_loss(training, labels)


def _labels(heads: Heads, release: Release, events: EventIds, span: Span) -> dict[str, Tensor]:
    feature_rows = release.model.item_tower.feature_rows.numpy()
    found = token_labels(heads.labels, release.tokenizer, events, span, feature_rows)
    return {name: torch.from_numpy(classes) for name, classes in found.items()}


def _summed(logits_TC: Tensor, labels_TK: Tensor) -> tuple[float, float]:
    total, count = label_loss(logits_TC.double(), labels_TK)
    return total.item(), count.item()


def _item_figures(
    logits_TI: Tensor, events: EventIds, first: int, rows: NDArray[np.int64]
) -> dict[str, tuple[float, float]]:
    """Sum and count of each of ITEM_METRICS over the tokens whose item is known; a token's history is masked."""
    kept = events.item[rows] >= FIRST_KNOWN
    # The first event has no history, so nothing is asked of it, as in `last_events`.
    kept &= rows > first
    rows, logits_TI = rows[kept], logits_TI[torch.from_numpy(kept)]
    targets_T = torch.from_numpy(events.item[rows])
    history = span_rows(np.full_like(rows, first), rows)
    token = np.repeat(np.arange(len(rows)), history.lengths)
    seen = torch.from_numpy(token), torch.from_numpy(events.item[history.rows])
    found = profile_figures(ranks(logits_TI, targets_T, seen))
    losses_T = nn.functional.cross_entropy(logits_TI, targets_T, reduction="none")
    per_token = {"ndcg@10": found["ndcg@10"], "mrr": found["mrr"], "loss": losses_T.double()}
    return {name: (values_T.sum().item(), float(len(rows))) for name, values_T in per_token.items()}


def _arrays(found: Mapping[str, list[tuple[float, float]]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array(pairs, dtype=np.float64) for name, pairs in found.items()}
