"""Next-item losses: softmax over the whole catalogue, never holding tokens x items, or over a sample.

Letters: T packed tokens, M tokens with a target, I item rows, J items that compete, D model width,
N sampled negatives, B sequences.

Every loss is a sum and comes with its number of targets, so that processes can add theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foundation.linear_cross_entropy import linear_cross_entropy, soft_cross_entropy
from foundation.model import unit
from foundation.objectives.multi_token import Pairs
from foundation.vocabulary import FIRST_KNOWN


class ProfileItems(NamedTuple):
    """All items of the profiles of a batch: no negatives of their tokens."""

    sequence_T: Tensor  # [T] int64, which sequence each token is of
    sequence_P: Tensor  # [P] int64, every sequence at least once
    item_P: Tensor  # [P] int64, item rows of that sequence's profile


def next_item_loss(
    hidden_TD: Tensor,
    item_vectors_ID: Tensor,
    targets_T: Tensor,
    temperature: float,
    competes_I: Tensor | None = None,
    weights_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Full softmax over the catalogue of cosine(hidden, item) / temperature.

    Rows 0 (out of vocabulary) and 1 (start) never compete. Tokens whose target does not compete, or whose
    weight is 0, are left out of sum and count.

    Args:
        hidden_TD: decoder output.
        item_vectors_ID: item tower output, rows 0 and 1 included.
        targets_T: int64 item rows; anything below 2 is no target.
        temperature: of the softmax, in cosine units; 0.05 in HSTU (arXiv 2402.17152).
        competes_I: bool, the rows that compete; None: all known ones.
        weights_T: factor of each token's loss, at least 0; None: 1.

    Returns:
        (sum of the losses, number of tokens in it), both scalars.
    """
    kept_M = _with_target(targets_T, competes_I, weights_T)
    keys_JD, classes_I = _keys(item_vectors_ID, competes_I)
    queries_MD = unit(hidden_TD.index_select(0, kept_M)) / temperature
    targets_M = targets_T.index_select(0, kept_M)
    classes_M = targets_M - FIRST_KNOWN if classes_I is None else classes_I.index_select(0, targets_M)
    weights_M = None if weights_T is None else weights_T.index_select(0, kept_M).to(queries_MD.dtype)
    loss = linear_cross_entropy(queries_MD, keys_JD, classes_M, weights_M, bound=1 / temperature)
    return loss, _count(kept_M)


def item_set_loss(
    hidden_TD: Tensor,
    item_vectors_ID: Tensor,
    pairs: Pairs,
    temperature: float,
    competes_I: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The softmax of `next_item_loss` with several weighted targets a token: sum of -weight * log p(item | token).

    Args:
        hidden_TD, item_vectors_ID, temperature, competes_I: as in `next_item_loss`.
        pairs: (token, item row, weight); those whose item doesn't compete are left out.

    Returns:
        (sum of the losses, number of tokens with a pair of weight above 0), both scalars.
    """
    kept_P = torch.nonzero(is_target(pairs.item, competes_I) & (pairs.weight > 0)).squeeze(1)
    # Tokens without a pair cost nothing: the softmax runs over the M others.
    tokens_M, token_P = torch.unique(pairs.token.index_select(0, kept_P), return_inverse=True)
    keys_JD, classes_I = _keys(item_vectors_ID, competes_I)
    queries_MD = unit(hidden_TD.index_select(0, tokens_M)) / temperature
    item_P = pairs.item.index_select(0, kept_P)
    class_P = item_P - FIRST_KNOWN if classes_I is None else classes_I.index_select(0, item_P)
    weight_P = pairs.weight.index_select(0, kept_P).to(queries_MD.dtype)
    loss = soft_cross_entropy(queries_MD, keys_JD, token_P, class_P, weight_P, bound=1 / temperature)
    return loss, _count(tokens_M)


def sampled_next_item_loss(
    hidden_TD: Tensor,
    item_vectors_ID: Tensor,
    targets_T: Tensor,
    temperature: float,
    negatives_N: Tensor,
    log_count_N: Tensor | None = None,
    profiles: ProfileItems | None = None,
    weights_T: Tensor | None = None,
    rows_U: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of `next_item_loss` with the softmax taken over the target and the given negatives alone.

    A negative that is a token's own target is masked for that token, so that no item is its own negative; with
    `profiles`, so is every item of the token's profile: what a profile went to before or later is not what it
    turned down.

    Args:
        hidden_TD, item_vectors_ID, targets_T, temperature, weights_T: as in `next_item_loss`.
        negatives_N: int64 item rows (see `negatives.py`), shared by all tokens.
        log_count_N: log of how often each one's row is expected among the N. It is subtracted from the negatives'
            logits (logQ correction): they then add to the partition what all items would, in expectation. The
            target is not sampled and not corrected (arXiv 2507.09331). None: no correction.
        profiles: items of each token's profile; None: only the own target is masked.
        rows_U: int64, ascending, the item rows that the vectors are of, targets and negatives among them; None:
            all rows. So a table that is spread over processes need not be gathered whole.

    Returns:
        (sum of the losses, number of tokens in it), both scalars.
    """
    kept_M = _with_target(targets_T, None, weights_T)
    targets_M = targets_T.index_select(0, kept_M)
    queries_MD = unit(hidden_TD.index_select(0, kept_M)) / temperature
    positive_MD, negative_ND = (
        unit(item_vectors_ID.index_select(0, rows if rows_U is None else torch.searchsorted(rows_U, rows)))
        for rows in (targets_M, negatives_N)
    )
    positive_M = (queries_MD * positive_MD).sum(dim=-1)
    negative_MN = queries_MD @ negative_ND.T
    if log_count_N is not None:
        negative_MN = negative_MN - log_count_N.to(negative_MN.dtype)
    masked_MN = targets_M[:, None] == negatives_N
    if profiles is not None and len(profiles.sequence_P):
        of_sequence_BN = items_of_sequences(profiles.sequence_P, profiles.item_P, negatives_N)
        masked_MN = masked_MN | of_sequence_BN.index_select(0, profiles.sequence_T.index_select(0, kept_M))
    negative_MN = negative_MN.masked_fill(masked_MN, float("-inf"))
    total_M = torch.logsumexp(torch.cat([positive_M[:, None], negative_MN], dim=1), dim=1)
    losses_M = total_M - positive_M
    if weights_T is not None:
        losses_M = losses_M * weights_T.index_select(0, kept_M).to(losses_M.dtype)
    return losses_M.sum(), _count(kept_M)


def items_of_sequences(sequence_P: Tensor, item_P: Tensor, rows_N: Tensor) -> Tensor:
    """Bool `[B, N]`: whether item row n occurs among the items of sequence b.

    Args:
        sequence_P: int64, from 0; at least one token.
        item_P: int64 item rows of the tokens.
        rows_N: int64 item rows to look for, repeats allowed.
    """
    num_sequences = int(sequence_P.max()) + 1
    distinct_U, place_N = torch.unique(rows_N, return_inverse=True)
    place_P = torch.searchsorted(distinct_U, item_P).clamp_max(max(0, len(distinct_U) - 1))
    found_BU = torch.zeros(num_sequences, len(distinct_U), dtype=torch.bool, device=rows_N.device)
    if len(distinct_U):
        hit = distinct_U[place_P] == item_P
        found_BU[sequence_P[hit], place_P[hit]] = True
    return found_BU[:, place_N]


def _keys(item_vectors_ID: Tensor, competes_I: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Unit vectors of the items that compete, and the class of each item row (None: row - 2)."""
    if competes_I is None:
        return unit(item_vectors_ID[FIRST_KNOWN:]), None
    competes_I = competes_I.clone()
    competes_I[:FIRST_KNOWN] = False
    # index_select, not a mask: on a CPU its backward is several times faster.
    rows_J = torch.nonzero(competes_I).squeeze(1)
    return unit(item_vectors_ID.index_select(0, rows_J)), competes_I.long().cumsum(0) - 1


def is_target(items: Tensor, competes_I: Tensor | None) -> Tensor:
    """Bool, of the shape of `items`: whether an item row is known, and competes (None: all known ones do)."""
    known = items >= FIRST_KNOWN
    return known if competes_I is None else known & competes_I[items.clamp_min(0)]


def _with_target(targets_T: Tensor, competes_I: Tensor | None, weights_T: Tensor | None) -> Tensor:
    kept_T = is_target(targets_T, competes_I)
    kept_T = kept_T if weights_T is None else kept_T & (weights_T > 0)
    return torch.nonzero(kept_T).squeeze(1)


def _count(kept_M: Tensor) -> Tensor:
    return torch.tensor(kept_M.shape[0], dtype=torch.int64, device=kept_M.device)
