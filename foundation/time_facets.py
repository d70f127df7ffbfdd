"""Time as the tokenizer sees it: two absolute channels (hour of week, date), a relative one (gap), an item's age.

Shifting all timestamps by whole weeks changes neither hour of week nor gap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foundation.vocabulary import PERIOD_S

HOUR_OF_WEEK, DATE, GAP, ITEM_AGE = "hour_of_week", "date", "gap", "item_age"

SECONDS_PER_HOUR = 3600
HOURS_PER_WEEK = 168
MONDAY = 72  # hours from the Monday before it to the unix epoch, a Thursday
GAP_LOG_WIDTH = 0.301
NUM_GAP_BUCKETS = 72  # the last begins after 60 years
SECONDS_PER_DAY = 86_400
AGE_LOG_WIDTH = 0.301
NUM_AGE_BUCKETS = 36  # the last begins after 103 years


def hour_of_week(timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hours since Monday 00:00 UTC, 0 to 167, of unix seconds."""
    return (timestamp // SECONDS_PER_HOUR + MONDAY) % HOURS_PER_WEEK


def period(timestamp: NDArray[np.int64], first_timestamp: int, num_periods: int) -> NDArray[np.int64]:
    """28-day periods since `first_timestamp`, clipped to 0 .. num_periods - 1."""
    return np.clip((timestamp - first_timestamp) // PERIOD_S, 0, num_periods - 1)


def gap_bucket(seconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """floor(ln(max(1, seconds)) / 0.301), at most the last bucket (HSTU, arXiv 2402.17152).

    A gap that runs backwards (a timestamp ahead of the clock, then a right one) counts as none.
    """
    buckets = np.floor(np.log(np.maximum(seconds, 1)) / GAP_LOG_WIDTH).astype(np.int64)
    return np.minimum(buckets, NUM_GAP_BUCKETS - 1)


def age_bucket(seconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """floor(ln(1 + days) / 0.301) of the time from an item's launch, at most the last bucket; 0 before the launch.

    Buckets begin after 0, 0.35, 0.83, 1.5, 2.3, .. days.
    """
    days = np.maximum(seconds, 0) / SECONDS_PER_DAY
    buckets = np.floor(np.log1p(days) / AGE_LOG_WIDTH).astype(np.int64)
    return np.minimum(buckets, NUM_AGE_BUCKETS - 1)
