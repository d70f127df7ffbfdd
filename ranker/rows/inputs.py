"""Model inputs of request rows."""

from __future__ import annotations

from ranker.features.builder import FeatureBuilder, candidate_tensors
from ranker.model import RankerInputs
from ranker.rows.rows import Rows


def model_inputs(features: FeatureBuilder, rows: Rows) -> RankerInputs:
    """What the ranker reads of rows: the profile's side once per request, candidates jagged."""
    candidates = candidate_tensors(rows.item_rows, rows.candidate_offsets, rows.candidates)
    return RankerInputs(features.assemble(rows.histories), candidates)
