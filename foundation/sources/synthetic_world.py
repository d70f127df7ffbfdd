"""The catalogue and the profiles of a simulated streaming service.

Titles have genres, a quality and a launch; profiles have tastes that drift over the year. Shapes: P profiles,
I items, G genres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foundation.errors import DataError

GENRES = ("drama", "comedy", "thriller", "documentary", "animation", "romance", "sci-fi", "sport")
ENTITY_TYPES = ("movie", "series", "game", "live")
LANGUAGES = ("en", "es", "ko", "fr", "hi")
COUNTRIES = ("US", "MX", "KR", "FR", "IN", "BR", "DE", "NZ")
CANVASES = ("home", "search", "kids", "mobile_feed")
DEVICES = ("tv", "phone", "tablet", "web")
DAY_S = 86_400
START_S = 1_704_067_200
"""2024-01-01 00:00 UTC."""
SPAN_S = 365 * DAY_S


@dataclass(frozen=True)
class SyntheticConfig:
    """The size of the world.

    Attributes:
        profiles: how many profiles.
        items: titles in the catalogue.
        sessions: requests of a profile over the year, on average.
        candidates: titles shown in a request, at most.
        seed: of every draw.
    """

    profiles: int = 400
    items: int = 300
    sessions: int = 25
    candidates: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("profiles", 3), ("items", 50), ("sessions", 1), ("candidates", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} = {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class Items:
    """The catalogue: arrays `[I]`, but `genre` `[I, 2]`, `taste` `[I, G]` and `speaks` `[I, languages]`."""

    genre: np.ndarray
    taste: np.ndarray
    quality: np.ndarray
    entity_type: np.ndarray
    maturity: np.ndarray
    speaks: np.ndarray
    runtime_minutes: np.ndarray
    launched_at: np.ndarray


@dataclass(frozen=True)
class Viewers:
    """The profiles: arrays `[P]`, but `speaks` `[P, languages]` and `taste` `[P, 2, G]`; age 0 is unknown.

    A taste moves in a straight line from the first of its two, at the start of the year, to the second.
    """

    taste: np.ndarray
    kids: np.ndarray
    country: np.ndarray
    speaks: np.ndarray
    age: np.ndarray
    device: np.ndarray
    num_sessions: np.ndarray


def draw_items(config: SyntheticConfig, rng: np.random.Generator) -> Items:
    """The catalogue; a third of it launches during the year."""
    count = config.items
    genre = rng.integers(len(GENRES), size=(count, 2))
    taste = np.zeros((count, len(GENRES)))
    taste[np.arange(count), genre[:, 1]] = 0.5
    taste[np.arange(count), genre[:, 0]] = 1.0
    speaks = rng.random((count, len(LANGUAGES))) < 0.2
    speaks[np.arange(count), rng.integers(len(LANGUAGES), size=count)] = True
    entity_type = rng.choice(len(ENTITY_TYPES), size=count, p=[0.5, 0.35, 0.1, 0.05])
    during = rng.random(count) < 1 / 3
    launched_at = np.where(during, rng.uniform(0, SPAN_S, count), -rng.exponential(3 * SPAN_S, count))
    return Items(
        genre=genre,
        taste=taste,
        quality=rng.normal(0, 0.8, count),
        entity_type=entity_type,
        maturity=rng.integers(4, size=count),
        speaks=speaks,
        runtime_minutes=rng.lognormal(np.log([100, 45, 30, 120])[entity_type], 0.3).round(),
        launched_at=START_S + launched_at.astype(np.int64) // DAY_S * DAY_S,
    )


def draw_viewers(config: SyntheticConfig, rng: np.random.Generator) -> Viewers:
    """The profiles; each has two favourite genres now, and other ones a year later."""
    count = config.profiles
    taste = rng.normal(0, 0.3, (count, 2, len(GENRES)))
    for end in range(2):
        for strength in (1.0, 1.5):
            taste[np.arange(count), end, rng.integers(len(GENRES), size=count)] += strength
    country = rng.choice(len(COUNTRIES), size=count, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02])
    speaks = rng.random((count, len(LANGUAGES))) < 0.15
    speaks[np.arange(count), np.minimum(country, len(LANGUAGES) - 1)] = True
    kids = rng.random(count) < 0.15
    age = np.where(kids, rng.integers(5, 13, count), rng.integers(18, 80, count))
    return Viewers(
        taste=taste,
        kids=kids,
        country=country,
        speaks=speaks,
        age=np.where(rng.random(count) < 0.1, 0, age),
        device=rng.integers(len(DEVICES), size=count),
        num_sessions=np.maximum(2, rng.lognormal(np.log(config.sessions) - 0.125, 0.5, count)).astype(
            np.int64
        ),
    )
