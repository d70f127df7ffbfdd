"""Predicted against observed: the curve that says where probabilities are too high or too low.

Shapes: C candidates, Q points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.evaluation.metrics import Floats, negative_weights

NUM_POINTS = 20


class CalibrationCurve(NamedTuple):
    """Candidates in the order of their predicted probability, cut into points of like many."""

    predicted: NDArray[np.float64]
    """`[Q]` mean predicted probability, ascending."""
    observed: NDArray[np.float64]
    """`[Q]` mean label."""
    candidates: NDArray[np.int64]
    """`[Q]`."""


def calibration_curve(probs: Floats, labels: Floats, log_rate: float = 0.0) -> CalibrationCurve:
    """The curve of one task, of at most `NUM_POINTS` points.

    Args:
        probs, labels, log_rate: as of `ranker.evaluation.metrics.calibration`; both means weigh a negative 1 / w.
    """
    order = np.argsort(probs, kind="stable")
    weights = negative_weights(labels, log_rate)
    points = [part for part in np.array_split(order, NUM_POINTS) if len(part)]
    means = [
        (np.average(probs[part], weights=weights[part]), np.average(labels[part], weights=weights[part]))
        for part in points
    ]
    predicted, observed = np.array(means, dtype=np.float64).reshape(-1, 2).T
    return CalibrationCurve(predicted, observed, np.array([len(part) for part in points], dtype=np.int64))
