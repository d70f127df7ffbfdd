"""Leave-one-out ranking: the last event of a held-out profile among all items, its history masked.

Letters: P tested profiles, B profiles of a chunk, T packed tokens, I item rows, N events of the dataset.

The tested event is known by its place (the last one); the request carries its time and its *when* and *where*
facets, as in training. Equal scores rank in item row order, so a figure doesn't depend on a sort's whims.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.dataset import Dataset
from foundation.layout import layout
from foundation.model import FoundationModel
from foundation.objectives import next_item_loss
from foundation.protocol import NUM_HELD_OUT
from foundation.split import TEST, VALIDATION, profile_roles, training_mask
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import span_rows, window_start

CUTOFFS = (1, 10, 50, 200)
PROTOCOL = (
    "leave one out: the last event of each held-out profile, ranked among all items, history masked; "
    "events ordered by (profile, timestamp), stable in file order; ties in item row order"
)
_PROFILES_PER_CHUNK = 64


class LastEvents(NamedTuple):
    """The tested event of each tested profile, and where its history begins."""

    first_row: NDArray[np.int64]  # [P], row of the profile's first event
    last_row: NDArray[np.int64]  # [P], row of the tested event; its history is what lies before it


def last_events(dataset: Dataset, events: EventIds, role: int) -> LastEvents:
    """The events that are TEST or VALIDATION (see `foundation.split`) under the dataset's protocol.

    "profiles": the last events of the profiles with that role. "last": the last of every profile; no validation
    event. "last-two": the last of every profile, with the validation event in its history, or the one before it.
    Events without a history, and those whose item isn't in the catalogue, are left out.
    """
    first_row, last_row = dataset.offsets[:-1], dataset.offsets[1:] - 1
    if dataset.protocol == "profiles":
        kept = profile_roles(dataset) == role
    else:
        behind = {TEST: 0, VALIDATION: 1}.get(role, NUM_HELD_OUT[dataset.protocol])
        kept = np.full(len(first_row), behind < NUM_HELD_OUT[dataset.protocol])
        last_row = last_row - behind
    kept &= last_row > first_row
    kept[kept] = events.item[last_row[kept]] >= FIRST_KNOWN
    return LastEvents(first_row[kept], last_row[kept])


def ranks(scores_BI: Tensor, targets_B: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
    """Place of each target among the known items: how many score higher, or the same in an earlier row.

    Args:
        scores_BI: one score per item row; rows 0 and 1 are never ranked.
        targets_B: int64 item rows, at least 2.
        seen: (sequence, item row) pairs to leave out; the target itself always stays in.

    Returns:
        int64 [B].
    """
    scores_BI = scores_BI.clone()
    target_scores_B1 = scores_BI.gather(1, targets_B[:, None])
    scores_BI[seen] = float("-inf")
    scores_BI[:, :FIRST_KNOWN] = float("-inf")
    earlier_BI = torch.arange(scores_BI.shape[1]) < targets_B[:, None]
    ahead_BI = (scores_BI > target_scores_B1) | ((scores_BI == target_scores_B1) & earlier_BI)
    return ahead_BI.sum(dim=1)


def ranking_metrics(ranks_P: Tensor) -> dict[str, float]:
    """Means of hr@k, of ndcg@k = 1 / log2(rank + 2) for k in `CUTOFFS`, and of mrr = 1 / (rank + 1)."""
    places_P = ranks_P.double()
    gain_P = 1.0 / torch.log2(places_P + 2)
    metrics: dict[str, float] = {}
    for k in CUTOFFS:
        metrics[f"hr@{k}"] = (places_P < k).double().mean().item()
        metrics[f"ndcg@{k}"] = torch.where(places_P < k, gain_P, 0.0).mean().item()
    metrics["mrr"] = (1.0 / (places_P + 1)).mean().item()
    return metrics


def popularity_ranks(dataset: Dataset, events: EventIds, tested: LastEvents, num_rows: int) -> Tensor:
    """Ranks when every profile is shown the items with the most foundation training events; int64 [P]."""
    counts = np.bincount(events.item[training_mask(dataset)], minlength=num_rows)
    scores_I = torch.from_numpy(counts.astype(np.float64))
    found = []
    for chunk in _chunks(tested):
        targets_B, seen = _targets_and_seen(events, chunk)
        found.append(ranks(scores_I.expand(len(targets_B), -1), targets_B, seen))
    return torch.cat(found)


@torch.no_grad()
def model_ranks(
    model: FoundationModel, tokenizer: Tokenizer, events: EventIds, tested: LastEvents
) -> tuple[Tensor, float]:
    """Ranks by the model, and its mean next-item loss over all tokens of the tested windows.

    Args:
        model: put into evaluation mode here, and back into the mode it was in.
        events: `Tokenizer.event_ids` of all events of the dataset.

    Returns:
        (int64 [P], loss in nats).
    """
    was_training = model.training
    model.eval()
    vectors_ID = model.item_vectors()
    window = model.config.window
    found, loss_sum, num_targets = [], 0.0, 0
    for chunk in _chunks(tested):
        num_before = chunk.last_row - chunk.first_row
        starts = chunk.first_row + window_start(num_before, window.window, window.block)
        span = span_rows(starts, chunk.last_row + 1)
        facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
        where = layout(torch.from_numpy(span.lengths))
        hidden_TD = model(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), where, vectors_ID)
        logits_BI = model.logits(model.profile_vector(hidden_TD, where), vectors_ID)
        targets_B, seen = _targets_and_seen(events, chunk)
        found.append(ranks(logits_BI, targets_B, seen))
        targets_T = torch.from_numpy(events.item[span.rows])
        loss, count = next_item_loss(hidden_TD, vectors_ID, targets_T, model.config.temperature)
        loss_sum, num_targets = loss_sum + loss.item(), num_targets + int(count)
    model.train(was_training)
    return torch.cat(found), loss_sum / max(1, num_targets)


def _chunks(tested: LastEvents) -> Iterator[LastEvents]:
    for first in range(0, len(tested.last_row), _PROFILES_PER_CHUNK):
        yield LastEvents(*(rows[first : first + _PROFILES_PER_CHUNK] for rows in tested))


def _targets_and_seen(events: EventIds, tested: LastEvents) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    history = span_rows(tested.first_row, tested.last_row)
    sequence = np.repeat(np.arange(len(history.lengths)), history.lengths)
    seen = torch.from_numpy(sequence), torch.from_numpy(events.item[history.rows])
    return torch.from_numpy(events.item[tested.last_row]), seen
