"""What releases and popularity make of tested events, and the report of it.

Letters: E tested events, N events of the dataset, I item rows, M metadata columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cold_figures import (
    DISCOUNTED,
    HITS,
    Estimates,
    estimate,
    expected_gain,
    same_kind,
    unseen,
    value_popularity,
)
from benchmarks.event_scores import Points, choose_points, event_scores, seen_before
from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.release import Release
from foundation.vocabulary import OUT_OF_VOCABULARY, Vocabulary

_EVENTS_PER_CHUNK = 512
Figures = dict[str, NDArray[np.float64]]
"""One number per tested event, `[E]`, by name."""


class Tested(NamedTuple):
    """The tested events of a dataset with every title, and which titles are cold."""

    dataset: Dataset
    points: Points
    is_cold: NDArray[np.bool_]  # [I]

    @property
    def is_cold_event(self) -> NDArray[np.bool_]:
        """Bool `[E]`: the event's title is a cold one."""
        return self.is_cold[item_rows(self.dataset)[self.points.row]]


def item_rows(dataset: Dataset) -> NDArray[np.int64]:
    """Row of each event's item, which is the same in every release with this catalogue; `[N]`, 0 where unknown."""
    rows = Vocabulary(dataset.catalogue.item_id).lookup(dataset.events.item_id)
    return np.maximum(rows, OUT_OF_VOCABULARY)


def draw_tested(
    dataset: Dataset, is_tested: NDArray[np.bool_], is_cold: NDArray[np.bool_], most: int, seed: int
) -> Tested:
    """Of each profile at most `most` of its tested events of cold titles, and as many of warm ones.

    Args:
        dataset: with every title.
        is_tested: bool `[N]`, the events of tested profiles.
        is_cold: bool `[I]`.
        most: events of one profile and kind.
        seed: of the draw.

    Raises:
        DataError: there is none of a kind.
    """
    rng, rows = np.random.default_rng(seed), item_rows(dataset)
    kinds = {"cold": is_cold[rows], "warm": ~is_cold[rows] & (rows != OUT_OF_VOCABULARY)}
    drawn = []
    for kind, is_kind in kinds.items():
        drawn.append(choose_points(dataset.offsets, is_tested & is_kind, most, rng))
        if not len(drawn[-1].row):
            raise DataError(
                f"{dataset.folder}: no tested profile has an event of a {kind} title after its first; change "
                "--share or --seed, or give more data"
            )
    first_row, row = (np.concatenate(both) for both in zip(*drawn, strict=True))
    order = np.argsort(row)
    return Tested(dataset, Points(first_row[order], row[order]), is_cold)


def model_figures(release: Release, tested: Tested, title: str = "") -> Figures:
    """How a release ranks the tested events.

    Returns:
        recall@10 and ndcg@10 among the titles of the event's own kind that weren't seen before, and
        all_titles_hr@10 and all_titles_ndcg@10 among all of them.
    """
    raw, points = tested.dataset.events, tested.points
    events = release.tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)
    names = ("recall@10", "ndcg@10", "all_titles_hr@10", "all_titles_ndcg@10")
    figures = {name: np.zeros(len(points.row)) for name in names}
    is_cold_I = torch.from_numpy(tested.is_cold)
    for places, logits_QI in event_scores(release.model, release.tokenizer, events, points, title):
        some = Points(points.first_row[places], points.row[places])
        targets_Q, seen = torch.from_numpy(events.item[some.row]), seen_before(events.item, some)
        ranked_QI = same_kind(is_cold_I, targets_Q, seen)
        all_QI = unseen(len(is_cold_I), len(targets_Q), seen)
        figures["recall@10"][places] = expected_gain(logits_QI, targets_Q, ranked_QI, HITS)
        figures["ndcg@10"][places] = expected_gain(logits_QI, targets_Q, ranked_QI, DISCOUNTED)
        figures["all_titles_hr@10"][places] = expected_gain(logits_QI, targets_Q, all_QI, HITS)
        figures["all_titles_ndcg@10"][places] = expected_gain(logits_QI, targets_Q, all_QI, DISCOUNTED)
    return figures


def popularity_figures(
    tested: Tested, feature_rows: NDArray[np.int64], counts: NDArray[np.int64], genre_columns: slice
) -> Figures:
    """recall@10 among cold titles without a model; 0 for events of warm titles.

    Args:
        tested: the events.
        feature_rows: `[I, M]`, metadata of every item.
        counts: `[I]`, training events.
        genre_columns: of `feature_rows`.

    Returns:
        genre_mean, genre_sum, metadata_mean and metadata_sum (see `value_popularity`), and chance.
    """
    scores = {"chance": np.zeros(len(counts))}
    for name, rows in (("genre", feature_rows[:, genre_columns]), ("metadata", feature_rows)):
        by_variant = value_popularity(rows, counts, tested.is_cold)
        scores |= {f"{name}_{variant}": score for variant, score in by_variant.items()}
    is_cold_I, items = torch.from_numpy(tested.is_cold), item_rows(tested.dataset)
    figures = {name: np.zeros(len(tested.points.row)) for name in scores}
    cold = np.flatnonzero(tested.is_cold_event)
    for places in np.split(cold, np.arange(_EVENTS_PER_CHUNK, len(cold), _EVENTS_PER_CHUNK)):
        some = Points(tested.points.first_row[places], tested.points.row[places])
        targets_Q = torch.from_numpy(items[some.row])
        ranked_QI = same_kind(is_cold_I, targets_Q, seen_before(items, some))
        for name, score_I in scores.items():
            scores_QI = torch.from_numpy(score_I).expand(len(places), -1)
            figures[name][places] = expected_gain(scores_QI, targets_Q, ranked_QI, HITS)
    return figures


def report(tested: Tested, models: Mapping[str, Figures], popularity: Figures, seed: int) -> dict[str, Any]:
    """The parts "cold" and "warm" of the document.

    Args:
        tested: the events.
        models: `model_figures` of "full" and of "plain".
        popularity: `popularity_figures`.
        seed: of the bootstrap.
    """
    named = {f"{model}_{name}": each for model, figures in models.items() for name, each in figures.items()}
    cold = _estimate(tested, tested.is_cold_event, named | popularity, seed)
    warm = _estimate(tested, ~tested.is_cold_event, named, seed)
    return {
        "cold": _cold(cold, tested, popularity),
        "warm": {
            "ndcg@10": _change(warm, "ndcg@10"),
            "hr@10": _change(warm, "recall@10"),
            # What cold titles that rank higher now cost the warm ones beside them.
            "all_titles_ndcg@10": _change(warm, "all_titles_ndcg@10"),
            "all_titles_hr@10": _change(warm, "all_titles_hr@10"),
            "events": int((~tested.is_cold_event).sum()),
            "profiles": _num_profiles(tested, ~tested.is_cold_event),
            "titles": tested.dataset.num_items - int(tested.is_cold.sum()),
        },
    }


def _cold(cold: Estimates, tested: Tested, popularity: Figures) -> dict[str, Any]:
    """The strongest way to count popularity by genre is the one that the model is held against."""
    best, best_of_metadata = (
        max((f"{values}_mean", f"{values}_sum"), key=lambda name: cold.means[name])
        for values in ("genre", "metadata")
    )
    sources = {
        "recall@10": "full_recall@10",
        "popularity_recall@10": best,
        "metadata_popularity_recall@10": best_of_metadata,
        "chance_recall@10": "chance",
        "all_titles_hr@10": "full_all_titles_hr@10",
        "plain_recall@10": "plain_recall@10",
        "plain_all_titles_hr@10": "plain_all_titles_hr@10",
    }
    model, ratios = sources["recall@10"], {"ratio": best, "plain_ratio": sources["plain_recall@10"]}
    return {
        **{name: cold.means[source] for name, source in sources.items()},
        **{name: cold.ratio(model, base) for name, base in ratios.items()},
        "popularity": best,
        "popularity_variants": {name: cold.means[name] for name in popularity},
        "events": int(tested.is_cold_event.sum()),
        "profiles": _num_profiles(tested, tested.is_cold_event),
        "titles": int(tested.is_cold.sum()),
        "ci95": {
            **{name: cold.interval(source) for name, source in sources.items()},
            **{name: cold.ratio_interval(model, base) for name, base in ratios.items()},
        },
    }


def _change(warm: Estimates, name: str) -> dict[str, Any]:
    """full against plain; relative_change is -.02 where full is 2 % lower."""
    full, plain = f"full_{name}", f"plain_{name}"
    ratio, interval = warm.ratio(full, plain), warm.ratio_interval(full, plain)
    return {
        "full": warm.means[full],
        "plain": warm.means[plain],
        "relative_change": None if ratio is None else ratio - 1,
        "ci95": None if interval is None else [bound - 1 for bound in interval],
    }


def _estimate(tested: Tested, is_kind: NDArray[np.bool_], figures: Figures, seed: int) -> Estimates:
    of_kind = {name: values[is_kind] for name, values in figures.items()}
    return estimate(of_kind, tested.points.first_row[is_kind], seed)


def _num_profiles(tested: Tested, is_kind: NDArray[np.bool_]) -> int:
    return len(np.unique(tested.points.first_row[is_kind]))
