"""Leave-one-out ranking: a profile's held-out event among all items, its history masked.

Letters: P tested profiles, B profiles of a chunk, T packed tokens, I item rows, N events of the dataset, K items
kept from the top.

The tested event is known by its place (one of the last); the request carries its time and its *when* and *where*
facets, as in training. Equal scores rank in item row order, so a figure doesn't depend on a sort's whims.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.item_tower import ItemVectors
from foundation.layout import layout
from foundation.model import FoundationModel
from foundation.protocol import NUM_HELD_OUT
from foundation.split import TEST, VALIDATION, profile_roles, training_mask
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import span_rows, window_start

CUTOFFS = (1, 10, 50, 200)
# Of a chunk: dense tokens, scores and profiles. Small enough for the processor's caches on a small catalogue.
_TOKENS_PER_CHUNK, _SCORES_PER_CHUNK, _PROFILES_PER_CHUNK = 8_192, 1 << 20, 256


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


class Ranking(NamedTuple):
    """How a model ranks the tested events; in their order."""

    ranks: Tensor  # int64 [P], 0 is first
    losses: Tensor  # float64 [P], cross-entropy of the tested item over all items, nats
    top_rows: Tensor  # int64 [P, K], item rows, best first; 0 behind a profile's last unmasked item
    top_scores: Tensor  # float32 [P, K], -inf there


def ranks(scores_BI: Tensor, targets_B: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
    """Place of each target among the known items: how many score higher, or the same in an earlier row.

    Args:
        scores_BI: one score per item row; rows 0 and 1 are never ranked.
        targets_B: int64 item rows, at least 2.
        seen: (sequence, item row) pairs to leave out; the target itself always stays in.

    Returns:
        int64 [B].
    """
    masked_BI = _masked(scores_BI, targets_B, seen)
    target_scores_B1 = scores_BI.gather(1, targets_B[:, None])
    earlier_BI = torch.arange(scores_BI.shape[1]) < targets_B[:, None]
    ahead_BI = (masked_BI > target_scores_B1) | ((masked_BI == target_scores_B1) & earlier_BI)
    return ahead_BI.sum(dim=1)


def profile_figures(ranks_P: Tensor) -> dict[str, Tensor]:
    """hr@k, ndcg@k = 1 / log2(rank + 2) for k in `CUTOFFS`, and mrr = 1 / (rank + 1), of each; float64 [P]."""
    places_P = ranks_P.double()
    gain_P = 1.0 / torch.log2(places_P + 2)
    figures: dict[str, Tensor] = {}
    for k in CUTOFFS:
        figures[f"hr@{k}"] = (places_P < k).double()
        figures[f"ndcg@{k}"] = torch.where(places_P < k, gain_P, 0.0)
    return {**figures, "mrr": 1.0 / (places_P + 1)}


def ranking_metrics(ranks_P: Tensor) -> dict[str, float]:
    """Means over profiles of `profile_figures`."""
    return {name: figure_P.mean().item() for name, figure_P in profile_figures(ranks_P).items()}


def popularity_ranks(dataset: Dataset, events: EventIds, tested: LastEvents, num_rows: int) -> Tensor:
    """Ranks when every profile is shown the items with the most foundation training events; int64 [P]."""
    scores_I = torch.from_numpy(item_counts(dataset, events, num_rows).astype(np.float64))
    found_P = torch.zeros(len(tested.last_row), dtype=torch.int64)
    for chunk in _chunks(np.ones(len(tested.last_row), dtype=np.int64), num_rows):
        targets_B, seen = _targets_and_seen(events, _of_chunk(tested, chunk))
        found_P[chunk] = ranks(scores_I.expand(len(targets_B), -1), targets_B, seen)
    return found_P


def item_counts(dataset: Dataset, events: EventIds, num_rows: int) -> NDArray[np.int64]:
    """Training events of each item row, int64 `[num_rows]`; 0 for the rows that are no item."""
    counts = np.bincount(events.item[training_mask(dataset)], minlength=num_rows)
    counts[:FIRST_KNOWN] = 0
    return counts


def model_ranks(
    model: FoundationModel, tokenizer: Tokenizer, events: EventIds, tested: LastEvents
) -> tuple[Tensor, float]:
    """Ranks by the model, int64 [P], and its mean loss in nats; see `rank_tested`."""
    ranking = rank_tested(model, tokenizer, events, tested)
    return ranking.ranks, ranking.losses.mean().item()


@torch.no_grad()
def rank_tested(
    model: FoundationModel,
    tokenizer: Tokenizer,
    events: EventIds,
    tested: LastEvents,
    num_top: int = 0,
    show_progress: bool = False,
) -> Ranking:
    """Ranks all items for each tested event's request.

    Args:
        model: put into evaluation mode here, and back into the mode it was in.
        tokenizer: that the events were looked up with.
        events: `Tokenizer.event_ids` of all events of the dataset.
        tested: which to rank, from which histories.
        num_top: K, items to keep from the top.
        show_progress: a bar on stderr, where that is a terminal.

    Raises:
        DataError: a score isn't a number.
    """
    was_training = model.training
    model.eval()
    items = model.item_vectors()
    num_items = len(items.vectors)
    num_tested, num_top = len(tested.last_row), min(num_top, num_items - FIRST_KNOWN)
    found = Ranking(
        ranks=torch.zeros(num_tested, dtype=torch.int64),
        losses=torch.zeros(num_tested, dtype=torch.float64),
        top_rows=torch.zeros(num_tested, num_top, dtype=torch.int64),
        top_scores=torch.zeros(num_tested, num_top),
    )
    starts = _window_starts(model, tested)
    with tqdm(
        total=num_tested, unit="profile", dynamic_ncols=True, disable=None if show_progress else True
    ) as bar:
        for chunk in _chunks(tested.last_row + 1 - starts, num_items):
            logits_BI = _request_logits(
                model, tokenizer, events, starts[chunk], tested.last_row[chunk], items
            )
            targets_B, seen = _targets_and_seen(events, _of_chunk(tested, chunk))
            if not logits_BI[:, FIRST_KNOWN:].isfinite().all():
                raise DataError("the model's scores are not all numbers: its training went astray")
            found.ranks[chunk] = ranks(logits_BI, targets_B, seen)
            found.losses[chunk] = nn.functional.cross_entropy(logits_BI, targets_B, reduction="none").double()
            if num_top:
                found.top_rows[chunk], found.top_scores[chunk] = _top(logits_BI, targets_B, seen, num_top)
            bar.update(len(chunk))
    model.train(was_training)
    return found


def _window_starts(model: FoundationModel, tested: LastEvents) -> NDArray[np.int64]:
    window = model.config.window
    return tested.first_row + window_start(tested.last_row - tested.first_row, window.window, window.block)


def _request_logits(
    model: FoundationModel,
    tokenizer: Tokenizer,
    events: EventIds,
    starts_B: NDArray[np.int64],
    tested_B: NDArray[np.int64],
    items: ItemVectors,
) -> Tensor:
    """Scores `[B, I]` of the requests at event rows `tested_B`, from histories that begin at `starts_B`."""
    span = span_rows(starts_B, tested_B + 1)
    facet_ids, item_ids = tokenizer.assemble(events, span.rows, span.previous)
    where = layout(torch.from_numpy(span.lengths))
    times_T = torch.from_numpy(events.timestamp[span.rows])
    hidden_TD = model(torch.from_numpy(facet_ids), torch.from_numpy(item_ids), where, items, times_T)
    return model.logits(model.profile_vector(hidden_TD, where), items.vectors)


def _top(
    scores_BI: Tensor, targets_B: Tensor, seen: tuple[Tensor, Tensor], num_top: int
) -> tuple[Tensor, Tensor]:
    """Item rows and scores of the `num_top` best of each sequence, as `ranks` orders them."""
    masked_BI = _masked(scores_BI, targets_B, seen)
    scores_BK, rows_BK = (best[:, :num_top] for best in masked_BI.sort(dim=1, descending=True, stable=True))
    return rows_BK.where(scores_BK > float("-inf"), 0), scores_BK


def _masked(scores_BI: Tensor, targets_B: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
    """A copy with -inf for rows that are no item and for those seen, but for the target."""
    masked_BI = scores_BI.clone()
    masked_BI[seen] = float("-inf")
    masked_BI[:, :FIRST_KNOWN] = float("-inf")
    return masked_BI.scatter(1, targets_B[:, None], scores_BI.gather(1, targets_B[:, None]))


def _chunks(lengths_P: NDArray[np.int64], num_rows: int) -> Iterator[NDArray[np.int64]]:
    """Places of tested events, in chunks of similar lengths, so that little is padded; the longest come first."""
    order = np.argsort(-lengths_P, kind="stable")
    first = 0
    while first < len(order):
        longest = int(lengths_P[order[first]])
        largest = min(_TOKENS_PER_CHUNK // longest, _SCORES_PER_CHUNK // num_rows, _PROFILES_PER_CHUNK)
        stop = first + max(1, largest)
        yield order[first:stop]
        first = stop


def _of_chunk(tested: LastEvents, chunk: NDArray[np.int64]) -> LastEvents:
    return LastEvents(tested.first_row[chunk], tested.last_row[chunk])


def _targets_and_seen(events: EventIds, tested: LastEvents) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    history = span_rows(tested.first_row, tested.last_row)
    sequence = np.repeat(np.arange(len(history.lengths)), history.lengths)
    seen = torch.from_numpy(sequence), torch.from_numpy(events.item[history.rows])
    return torch.from_numpy(events.item[tested.last_row]), seen
