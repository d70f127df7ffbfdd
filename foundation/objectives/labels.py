"""What a token is to predict beside its item: classes of facets and features, found by name.

    name               label of token t, which stands before event t
    rating             a *what* facet of event t
    genres             a feature of event t's item; item.genres where a facet is called genres too
    next.device        a *when* or *where* facet of event t + 1
    next.gap           the gap bucket of token t + 1: the time from event t to the next

Hidden state t has seen none of them. The last token of a window has no next.* label. Classes are the known values
of a vocabulary, from 0; a value out of vocabulary, or none, is no label.

Letters: T packed tokens, C classes, K columns of a label (above 1 for multi-valued ones), M metadata columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.errors import DataError
from foundation.joint_table import JointTable
from foundation.time_facets import GAP, NUM_GAP_BUCKETS
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import Span

Source = Literal["outcome", "item", "next", "request"]
NO_LABEL = -1
NEXT, ITEM = "next.", "item."


@dataclass(frozen=True)
class LabelColumns:
    """Where a label is read.

    Attributes:
        name: as the configuration says it.
        source: the outcome of the token's event, its item, the token after it, or its own request side.
        columns: K places in the outcome side, the item's metadata rows, the token's facets or the request side.
        first_row: joint row of class 0.
        num_classes: C.
    """

    name: str
    source: Source
    columns: tuple[int, ...]
    first_row: int
    num_classes: int


def label_columns(tokenizer: Tokenizer, own_request: bool = False) -> dict[str, LabelColumns]:
    """Every label that the schema offers, by name.

    Args:
        tokenizer: of the schema.
        own_request: with the *when* and *where* facets of a token's own event, which its hidden state has seen.
    """
    schema = tokenizer.schema
    found: list[LabelColumns] = []
    names = [column.split("[")[0] for column in tokenizer.facet_columns]
    # A token's columns end with the outcome side, *what* facets first.
    outcome_facets = [facet.name for facet in schema.facets_of("what")]
    first_outcome = names.index(outcome_facets[0]) if outcome_facets else len(names)
    for facet in schema.facets:
        places = tuple(place for place, name in enumerate(names) if name == facet.name)
        first_row = _first_row(tokenizer, facet.name)
        size = tokenizer.vocabularies.facets[facet.name].num_rows - FIRST_KNOWN
        if facet.role == "what":
            of_outcome = tuple(place - first_outcome for place in places)
            found.append(LabelColumns(facet.name, "outcome", of_outcome, first_row, size))
            continue
        found.append(LabelColumns(NEXT + facet.name, "next", places, first_row, size))
        if own_request:
            found.append(LabelColumns(facet.name, "request", places, first_row, size))
    if GAP in names:
        place = (names.index(GAP),)
        found.append(LabelColumns(NEXT + GAP, "next", place, _first_row(tokenizer, GAP), NUM_GAP_BUCKETS))
    found += _item_labels(tokenizer, {facet.name for facet in schema.facets})
    return {label.name: label for label in found}


def _item_labels(tokenizer: Tokenizer, taken: set[str]) -> list[LabelColumns]:
    features, lookups = tokenizer.schema.item_features, tokenizer.vocabularies.item_features
    # As `catalogue_feature_rows` lays them out.
    table = JointTable({feature.name: lookups[feature.name].num_rows for feature in features})
    found, first_column = [], 0
    for feature in features:
        columns = tuple(range(first_column, first_column + feature.max_values))
        first_column += feature.max_values
        name = ITEM + feature.name if feature.name in taken else feature.name
        first_row = table.row(feature.name, FIRST_KNOWN)
        size = lookups[feature.name].num_rows - FIRST_KNOWN
        found.append(LabelColumns(name, "item", columns, first_row, size))
    return found


def _first_row(tokenizer: Tokenizer, name: str) -> int:
    return tokenizer._table.row(name, FIRST_KNOWN)


def resolve_label(name: str, tokenizer: Tokenizer, field: str, own_request: bool = False) -> LabelColumns:
    """The label called `name`.

    Raises:
        DataError: there is none, or no training event has a value of it; names `field` and the valid names.
    """
    offered = label_columns(tokenizer, own_request)
    usable = ", ".join(sorted(each for each, label in offered.items() if label.num_classes))
    if name not in offered:
        raise DataError(f"objective.{field} names {name!r}; schema {tokenizer.schema.name!r} offers {usable}")
    if not offered[name].num_classes:
        raise DataError(f"objective.{field} names {name!r}, which has no known value; use one of {usable}")
    return offered[name]


def token_labels(
    labels: Sequence[LabelColumns],
    tokenizer: Tokenizer,
    events: EventIds,
    span: Span,
    feature_rows: NDArray[np.int64],
) -> dict[str, NDArray[np.int64]]:
    """Classes of every token, by label name.

    Args:
        labels: which.
        events: looked-up events of the dataset.
        span: the batch's tokens; token t is of event `span.rows[t]`.
        feature_rows: `[I, M]`, from `catalogue_feature_rows`.

    Returns:
        int64 `[T, K]` each, in [0, C), -1 where there is no label.
    """
    rows_of: dict[str, NDArray[np.int64]] = {}
    for source in {label.source for label in labels}:
        if source == "next":
            rows_of[source] = _following_facets(tokenizer, events, span)
        elif source == "item":
            rows_of[source] = feature_rows[events.item[span.rows]]
        else:
            rows_of[source] = (events.outcome_side if source == "outcome" else events.request_side)[span.rows]
    found = {}
    for label in labels:
        classes = rows_of[label.source][:, list(label.columns)] - label.first_row
        found[label.name] = np.where((classes >= 0) & (classes < label.num_classes), classes, NO_LABEL)
    return found


def _following_facets(tokenizer: Tokenizer, events: EventIds, span: Span) -> NDArray[np.int64]:
    """Facets `[T, F]` of the token after each one; 0 for the last token of a sequence."""
    # A token is the last of its sequence where the next one, if any, has no row before it.
    has_next = np.append(span.previous[1:] >= 0, False)[: len(span.rows)]
    facets = np.zeros((len(span.rows), len(tokenizer.facet_columns)), dtype=np.int64)
    rows = span.rows[has_next]
    facets[has_next] = tokenizer.assemble(events, rows + 1, rows)[0]
    return facets


def label_loss(logits_TC: Tensor, labels_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of the softmax of `logits`, a mean over the labels of a token, summed over tokens.

    Several labels share the target evenly: -1/k sum_i log p(label_i). So one softmax serves every kind of facet,
    and predicting how frequent each class is among labels is its best constant answer.

    Args:
        logits_TC: one row a token.
        labels_TK: classes, -1 where there is none; they differ within a row.

    Returns:
        (sum, number of tokens with a label), both scalars.
    """
    labelled_TK = labels_TK >= 0
    counts_T = labelled_TK.sum(dim=1)
    picked_TK = logits_TC.log_softmax(dim=-1).gather(1, labels_TK.clamp_min(0))
    shares_TK = labelled_TK / counts_T.clamp_min(1)[:, None]
    return -(picked_TK * shares_TK.to(picked_TK.dtype)).sum(), (counts_T > 0).sum()


def label_shares(labels_TK: Tensor, num_classes: int) -> Tensor:
    """How often each class is a label, float64 `[C]`; a token's labels count 1 together."""
    labelled_TK = labels_TK >= 0
    shares_TK = labelled_TK.double() / labelled_TK.sum(dim=1, keepdim=True).clamp_min(1)
    shares_C = torch.zeros(num_classes, dtype=torch.float64, device=labels_TK.device)
    return shares_C.index_add_(0, labels_TK.clamp_min(0).flatten(), shares_TK.flatten())
