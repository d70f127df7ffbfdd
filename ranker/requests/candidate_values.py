"""Candidate features as requests.parquet holds them: list columns, a value for each candidate.

Shapes: B requests, C candidates over the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.ingestion import Table
from ranker.features.candidate_features import CandidateFeature


def candidate_values(table: Table, feature: CandidateFeature, lengths: NDArray[np.int64]) -> NDArray:
    """Raw values `[C]` of one feature: int64 (categorical) or float32 (numeric); a null in a list is "no value".

    Args:
        table: requests.parquet, or a part of it.
        feature: whose column is among the table's.
        lengths: `[B]`, candidates of each request.

    Raises:
        DataError: the column holds no lists, or values of another kind, or a list that is longer or shorter than the
            request's candidates.
    """
    column = feature.column
    values, given = table.number_lists(column) if feature.is_number else table.value_lists(column)
    if (given != lengths).any():
        row = int(np.flatnonzero(given != lengths)[0])
        raise table.fail(column, f"row {row} holds {given[row]} values for {lengths[row]} candidates")
    return values
