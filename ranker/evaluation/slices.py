"""Where a ranker is good: which candidates are of fresh titles, of short or long histories, of which canvas.

Shapes: B requests, C candidates over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foundation.detokenizer import Values
from foundation.joint_table import PADDING_ROW
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, Vocabularies
from ranker.features.facet_names import FacetNames
from ranker.rows.rows import Rows, days_since_launch

FRESH_DAYS = 28
"""A title launched fewer days before the request is fresh."""
LENGTHS = (0, 10, 50, 200)
"""Least events before the request in each slice of `history_length`."""
MAX_VALUES = 10
"""Values of a facet with a slice of their own: the most frequent ones; the others share `other`."""
FRESH, ESTABLISHED, OTHER, UNKNOWN, NO_FACET_VALUE = "fresh", "established", "other", "unknown", "none"

Slices = dict[str, dict[str, NDArray[np.bool_]]]
"""By name of the slicing, then of the slice: `[C]`, which candidates are in it."""


def candidate_slices(rows: Rows, tokenizer: Tokenizer, names: FacetNames | None = None) -> Slices:
    """Which candidates of rows are in which slice; slices without a candidate are left out.

    Args:
        rows: B requests.
        tokenizer: of the rows.
        names: what values of facets are called, where they were strings.

    Returns:
        title: "fresh" (launched less than `FRESH_DAYS` days before the request, or without a training event) and
            "established".
        history_length: events before the request, all of them, whatever the window; "10-49" is from 10 to 49.
        and for each categorical facet that says where a request comes from, its name: names or raw values, "other" (the
            less frequent ones), "unknown" (never seen in training), "none" (no value).
    """
    sizes = np.diff(rows.candidate_offsets)
    by_request = {"history_length": _by_length(rows), **_by_facet(rows, tokenizer, names or {})}
    fresh = fresh_candidates(rows, tokenizer.vocabularies)
    slices: Slices = {"title": {FRESH: fresh, ESTABLISHED: ~fresh}}
    for slicing, of_request in by_request.items():
        slices[slicing] = {name: np.repeat(mask, sizes) for name, mask in of_request.items()}
    return {
        slicing: {name: mask for name, mask in parts.items() if mask.any()}
        for slicing, parts in slices.items()
    }


def fresh_candidates(rows: Rows, vocabularies: Vocabularies) -> NDArray[np.bool_]:
    """Which candidates are of fresh titles `[C]`, see `candidate_slices`."""
    never_seen = vocabularies.item_counts[rows.item_rows] == 0
    return never_seen | (days_since_launch(rows, vocabularies.launched_at) < FRESH_DAYS)


def _by_length(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    num_events = rows.histories.num_events_before + rows.history_lengths
    number = np.searchsorted(LENGTHS, num_events, side="right") - 1
    tops = [*(f"-{edge - 1}" for edge in LENGTHS[1:]), "+"]
    return {f"{least}{top}": number == i for i, (least, top) in enumerate(zip(LENGTHS, tops, strict=True))}


def _by_facet(rows: Rows, tokenizer: Tokenizer, names: FacetNames) -> dict[str, dict[str, NDArray[np.bool_]]]:
    facets = [each.name for each in tokenizer.schema.facets_of("where") if each.kind == "categorical"]
    if not facets:
        return {}
    # Of a token, a request's own columns are enough.
    request_side = rows.histories.request.request_side
    facet_ids = np.full((len(rows), len(tokenizer.facet_columns)), PADDING_ROW, dtype=np.int64)
    facet_ids[:, tokenizer.context_columns] = request_side
    decoded = tokenizer.detokenize(facet_ids, np.full(len(rows), OUT_OF_VOCABULARY))
    return {name: _by_value(decoded[name], names.get(name, {})) for name in facets}  # type: ignore[arg-type]


def _by_value(values: Values, names: Mapping[int, str]) -> dict[str, NDArray[np.bool_]]:
    is_known = values.row >= FIRST_KNOWN
    found, counts = np.unique(values.value[is_known], return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")[:MAX_VALUES]]
    slices = {names.get(int(value), str(value)): is_known & (values.value == value) for value in frequent}
    slices[OTHER] = is_known & ~np.isin(values.value, frequent)
    slices[UNKNOWN] = values.row == OUT_OF_VOCABULARY
    slices[NO_FACET_VALUE] = values.row < 0
    return slices
