"""What happens in the simulated streaming service: requests, impressions and who watches what.

A session is a request: the service shows titles at positions of a canvas, by popularity and (more or less) by
taste; a title is watched when it is both seen, which falls with its position, and preferred. Shapes:
P profiles, I items, R requests, C titles shown in a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.errors import DataError
from foundation.sources.synthetic_world import (
    CANVASES,
    DAY_S,
    DEVICES,
    SPAN_S,
    START_S,
    Items,
    SyntheticConfig,
    Viewers,
)

HOME, SEARCH, KIDS, FEED = range(len(CANVASES))
NUM_HOME_ROWS = 12

# By canvas: how fast attention falls with position, and how much the order shown knows of a profile's taste.
_POSITION_DECAY = np.array([0.5, 0.9, 0.4, 0.7])
_POLICY_TASTE = np.array([2.0, 5.0, 1.0, 3.0])


@dataclass(frozen=True)
class Requests:
    """R requests, `[R]`, and what was shown, `[R, C]`; slots past `num_shown` hold nothing.

    `preference` is the probability that the profile, having seen the title, watches it; `examination` that it
    is seen.
    """

    profile: np.ndarray
    timestamp: np.ndarray
    canvas: np.ndarray
    device: np.ndarray
    home_row: np.ndarray
    num_shown: np.ndarray
    item: np.ndarray
    preference: np.ndarray
    examination: np.ndarray
    watched: np.ndarray
    liked: np.ndarray
    duration_minutes: np.ndarray


def simulate(config: SyntheticConfig, items: Items, viewers: Viewers, rng: np.random.Generator) -> Requests:
    """Every profile's sessions in turn; no profile is shown what it has watched or what hasn't launched."""
    watched_before = np.zeros((config.profiles, config.items), dtype=bool)
    times = _session_times(viewers.num_sessions, rng)
    rounds = []
    for session in range(times.shape[1]):
        profile = np.flatnonzero(viewers.num_sessions > session)
        requests = _session(config, items, viewers, profile, times[profile, session], watched_before, rng)
        row, slot = np.nonzero(requests.watched)
        watched_before[profile[row], requests.item[row, slot]] = True
        rounds.append(requests)
    joined = {name: np.concatenate([getattr(each, name) for each in rounds]) for name in vars(rounds[0])}
    order = np.lexsort((joined["timestamp"], joined["profile"]))
    return Requests(**{name: values[order] for name, values in joined.items()})


def _session_times(num_sessions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ascending unix seconds of each profile's sessions, `[P, most sessions]`, a day apart at least."""
    most = int(num_sessions.max())
    used = np.arange(most) < num_sessions[:, None]
    free = SPAN_S - num_sessions[:, None] * DAY_S
    if (free <= 0).any():
        raise DataError(
            f"sessions: a profile drew {most}, which don't fit a year, a day apart; give a smaller number"
        )
    times = np.sort(np.where(used, rng.random(used.shape), 2.0), axis=1) * free
    return START_S + times.astype(np.int64) + np.arange(most) * DAY_S


def _session(
    config: SyntheticConfig,
    items: Items,
    viewers: Viewers,
    profile: np.ndarray,
    timestamp: np.ndarray,
    watched_before: np.ndarray,
    rng: np.random.Generator,
) -> Requests:
    """One request of each given profile."""
    count = len(profile)
    kids = viewers.kids[profile]
    device = np.where(
        rng.random(count) < 0.7, viewers.device[profile], rng.integers(len(DEVICES), size=count)
    )
    canvas = rng.choice([HOME, SEARCH, FEED], size=count, p=[0.65, 0.2, 0.15])
    canvas = np.where(kids & (canvas != SEARCH), KIDS, canvas)
    canvas = np.where((canvas == FEED) & (device != DEVICES.index("phone")), HOME, canvas)
    home_row = np.where(canvas == HOME, rng.geometric(0.3, count).clip(1, NUM_HOME_ROWS) - 1, -1)

    taste, likes = _preference(items, viewers, profile, timestamp)
    shown = (items.launched_at <= timestamp[:, None]) & ~watched_before[profile]
    shown &= (canvas[:, None] != KIDS) | (items.maturity <= 1)
    score = 1.5 * items.quality + _POLICY_TASTE[canvas][:, None] * taste + rng.gumbel(size=taste.shape)
    item = np.argsort(-np.where(shown, score, -np.inf), axis=1, kind="stable")[:, : config.candidates]
    num_shown = np.minimum(shown.sum(axis=1), config.candidates)

    position = np.arange(item.shape[1])
    in_row = np.maximum(home_row, 0)[:, None]
    examination = (1.0 + position) ** -_POSITION_DECAY[canvas][:, None] * (1.0 + in_row) ** -0.2
    preference = np.take_along_axis(likes, item, axis=1)
    watched = (rng.random(item.shape) < examination * preference) & (position < num_shown[:, None])
    share = rng.beta(1 + 6 * preference, 2)
    whole = np.where(canvas[:, None] == FEED, 3.0, items.runtime_minutes[item])
    return Requests(
        profile=profile,
        timestamp=timestamp,
        canvas=canvas,
        device=device,
        home_row=home_row,
        num_shown=num_shown,
        item=item,
        preference=preference,
        examination=examination,
        watched=watched,
        liked=watched & (rng.random(item.shape) < preference**2),
        duration_minutes=share * whole,
    )


def _preference(
    items: Items, viewers: Viewers, profile: np.ndarray, timestamp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How well each item meets each profile's taste at that time, and how likely it is watched, `[P, I]`."""
    passed = ((timestamp - START_S) / SPAN_S)[:, None]
    taste_now = (1 - passed) * viewers.taste[profile, 0] + passed * viewers.taste[profile, 1]
    taste = taste_now @ items.taste.T
    understood = viewers.speaks[profile].astype(float) @ items.speaks.T.astype(float) > 0
    too_mature = viewers.kids[profile][:, None] & (items.maturity >= 2)
    logit = 2.5 * (taste - 1.0) + items.quality + 0.8 * understood - 3.0 * too_mature
    return taste, 1 / (1 + np.exp(-logit))
