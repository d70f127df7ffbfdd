"""The synthetic world as tables, in the columns that its schema declares.

Shapes: P profiles, I items, R requests, C titles shown in a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from foundation.sources.synthetic_sessions import FEED, Requests
from foundation.sources.synthetic_world import (
    CANVASES,
    COUNTRIES,
    DAY_S,
    DEVICES,
    ENTITY_TYPES,
    GENRES,
    LANGUAGES,
    START_S,
    Items,
    Viewers,
)

FIRST_PROFILE_ID, FIRST_ITEM_ID, ITEM_ID_STEP = 10_001, 500_000, 7
LONGEST_SESSION_MINUTES = 20 * 60
ADD_TO_LIST_SHARE = 0.05
FINISHED_SHARE = 0.85

_ADJECTIVES = (
    *("Quiet", "Crimson", "Last", "Hidden", "Paper", "Golden", "Broken", "Distant", "Velvet", "Hollow"),
    *("Wild", "Silver", "Second", "Burning", "Frozen", "Secret", "Long", "Bright", "Lost", "Northern"),
)
_NOUNS = (
    *("Harbour", "Garden", "Letter", "Station", "Summer", "River", "Kingdom", "Mirror", "Orchard", "Signal"),
    *(
        "Voyage",
        "Winter",
        "Carnival",
        "Bridge",
        "Lantern",
        "Empire",
        "Melody",
        "Frontier",
        "Island",
        "Promise",
    ),
)


def draw_item_ids(count: int, rng: np.random.Generator) -> np.ndarray:
    """Raw ids `[I]`, in no order, so that nothing works by taking an id for a row."""
    return FIRST_ITEM_ID + ITEM_ID_STEP * rng.permutation(count)


def items_table(items: Items, item_id: np.ndarray) -> pl.DataFrame:
    """items.parquet."""
    genres = [list(dict.fromkeys(GENRES[genre] for genre in pair)) for pair in items.genre.tolist()]
    return pl.DataFrame(
        {
            "item_id": item_id,
            "title": _titles(len(item_id)),
            "entity_type": _named(items.entity_type, ENTITY_TYPES),
            "maturity": items.maturity,
            "genres": genres,
            "languages": _spoken(items.speaks),
            "runtime_minutes": items.runtime_minutes,
            "launched_at": items.launched_at,
        }
    )


def profiles_table(viewers: Viewers) -> pl.DataFrame:
    """profiles.parquet; an unknown age is null."""
    age = pl.Series(viewers.age)
    return pl.DataFrame(
        {
            "profile_id": FIRST_PROFILE_ID + np.arange(len(viewers.age)),
            "country": _named(viewers.country, COUNTRIES),
            "kids": viewers.kids,
            "age": age.set(age == 0, None),
            "languages": _spoken(viewers.speaks),
        }
    )


def events_table(
    requests: Requests, items: Items, viewers: Viewers, item_id: np.ndarray, rng: np.random.Generator
) -> pl.DataFrame:
    """events.parquet: the watched titles of each request, one after the other, sorted by profile and time."""
    request, position = np.nonzero(requests.watched)
    item, profile = requests.item[request, position], requests.profile[request]
    minutes = requests.duration_minutes[request, position]
    action = np.where(minutes > FINISHED_SHARE * items.runtime_minutes[item], "finish", "play")
    action = np.where(requests.canvas[request] == FEED, "trailer", action)
    action = np.where(requests.liked[request, position], "thumbs_up", action)
    listed = (action == "play") & (rng.random(len(item)) < ADD_TO_LIST_SHARE)
    action = np.where(listed, "add_to_list", action)

    # What came before a title in its request took its time; the request itself took a minute.
    taken = np.where(requests.watched, requests.duration_minutes, 0.0)
    waited = np.minimum((np.cumsum(taken, axis=1) - taken)[request, position], LONGEST_SESSION_MINUTES)
    duration = pl.Series((60 * minutes).round()).set(pl.Series(listed), None)
    home_row = pl.Series(requests.home_row[request])
    heard = items.speaks[item] & viewers.speaks[profile]
    return pl.DataFrame(
        {
            "profile_id": FIRST_PROFILE_ID + profile,
            "item_id": item_id[item],
            "timestamp": requests.timestamp[request] + 60 + (60 * waited).astype(np.int64),
            "holiday": _holiday(requests.timestamp[request]),
            "canvas": _named(requests.canvas[request], CANVASES),
            "device": _named(requests.device[request], DEVICES),
            "home_row": home_row.set(home_row < 0, None),
            "position": position,
            "action": pl.Series(action),
            "duration": duration,
            "audio_languages": _spoken(heard),
        }
    ).sort("profile_id", "timestamp", maintain_order=True)


def requests_tables(requests: Requests, item_id: np.ndarray) -> dict[str, pl.DataFrame]:
    """requests.parquet and truth.parquet, for the profiles that have watched anything at all.

    `label_like` is null where a title wasn't watched.
    """
    active = np.isin(requests.profile, requests.profile[requests.watched.any(axis=1)])
    shown = np.arange(requests.item.shape[1]) < requests.num_shown[:, None]
    shown &= active[:, None]
    lengths = requests.num_shown[active]
    watched = pl.Series(requests.watched[shown].astype(np.int8))
    liked = pl.Series(requests.liked[shown].astype(np.int8)).set(watched == 0, None)
    positions = np.broadcast_to(np.arange(shown.shape[1]), shown.shape)[shown]
    home_row = pl.Series(requests.home_row[active])
    request_id = np.arange(int(active.sum()))
    logged = pl.DataFrame(
        {
            "request_id": request_id,
            "profile_id": FIRST_PROFILE_ID + requests.profile[active],
            "timestamp": requests.timestamp[active],
            "holiday": _holiday(requests.timestamp[active]),
            "canvas": _named(requests.canvas[active], CANVASES),
            "device": _named(requests.device[active], DEVICES),
            "home_row": home_row.set(home_row < 0, None),
            "candidates": _lists(pl.Series(item_id[requests.item[shown]]), lengths),
            "positions": _lists(pl.Series(positions), lengths),
            "label_watch": _lists(watched, lengths),
            "label_like": _lists(liked, lengths),
        }
    )
    truth = pl.DataFrame(
        {
            "request_id": request_id,
            "preference": _lists(pl.Series(requests.preference[shown].astype(np.float32)), lengths),
            "examination": _lists(pl.Series(requests.examination[shown].astype(np.float32)), lengths),
        }
    )
    return {"requests": logged, "truth": truth}


def _titles(count: int) -> list[str]:
    """Made-up titles, all different: a number tells the second "The Quiet Harbour" from the first."""
    pairs = len(_ADJECTIVES) * len(_NOUNS)
    titles = []
    for number in range(count):
        # A step without a factor in common with the number of pairs visits all of them before any again.
        adjective, noun = divmod(number * 147 % pairs, len(_NOUNS))
        sequel = f" {number // pairs + 1}" if number >= pairs else ""
        titles.append(f"The {_ADJECTIVES[adjective]} {_NOUNS[noun]}{sequel}")
    return titles


def _named(codes: np.ndarray, names: Sequence[str]) -> pl.Series:
    return pl.Series(np.asarray(names)[codes])


def _spoken(speaks: np.ndarray) -> list[list[str]]:
    return [
        [language for language, spoken in zip(LANGUAGES, row, strict=True) if spoken]
        for row in speaks.tolist()
    ]


def _holiday(timestamp: np.ndarray) -> np.ndarray:
    """1 on the first two days of every thirty, else 0."""
    return ((timestamp - START_S) // DAY_S % 30 < 2).astype(np.int64)


def _lists(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """A list column whose rows take `lengths` values each, in turn."""
    rows = pl.DataFrame({"row": np.repeat(np.arange(len(lengths)), lengths), "value": values})
    return rows.group_by("row", maintain_order=True).agg("value")["value"]
