"""Is one ranker better than another: a paired bootstrap over profiles of the difference of their GAUC.

Shapes: B requests, P profiles, S bootstrap samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from foundation.errors import DataError
from foundation.ingestion import Table
from ranker.evaluation.evaluation import CANDIDATES_HASH, HISTORY_END, PROFILE, REQUEST

NUM_SAMPLES = 10_000
_SAMPLES_PER_CHUNK = 500
_AUC = "auc_"


def compare_dumps(first: Path, second: Path, task: str | None = None, seed: int = 0) -> dict[str, Any]:
    """GAUC of two rankers on the same test requests, its difference, and that difference's 95 % interval.

    Args:
        first, second: `test_requests.parquet` of two runs.
        task: which of their tasks; None for the first of the first run.
        seed: of the bootstrap.

    Returns:
        task, gauc_first, gauc_second, gauc_difference (first - second), gauc_difference_ci95 [low, high], requests,
        profiles, samples.

    Raises:
        DataError: a file is unreadable, lacks the task, or the two are of different requests
            or candidates.
    """
    key = [REQUEST, PROFILE, HISTORY_END, CANDIDATES_HASH]
    task = _task(Table(first, key), task)
    column = _AUC + _task(Table(second, key), task)
    tables = [Table(path, [*key, column]).frame for path in (first, second)]
    keys = [table.select(key) for table in tables]
    aucs = [table[column].cast(pl.Float64).fill_null(float("nan")).to_numpy() for table in tables]
    if not keys[0].equals(keys[1]) or not np.array_equal(np.isnan(aucs[0]), np.isnan(aucs[1])):
        raise DataError(
            f"{second}: holds other requests than {first}; compare runs on the same data, seed and request settings"
        )
    kept = ~np.isnan(aucs[0])
    if not kept.any():
        raise DataError(f"{first}: column {column!r}: no request has a positive and a negative")
    profile = tables[0][PROFILE].to_numpy()[kept]
    difference = aucs[0][kept] - aucs[1][kept]
    low, high = paired_interval(difference, profile, seed)
    return {
        "task": task,
        "gauc_first": float(aucs[0][kept].mean()),
        "gauc_second": float(aucs[1][kept].mean()),
        "gauc_difference": float(difference.mean()),
        "gauc_difference_ci95": [low, high],
        "requests": int(kept.sum()),
        "profiles": len(np.unique(profile)),
        "samples": NUM_SAMPLES,
    }


def _task(table: Table, task: str | None) -> str:
    """`task`, or the first that a dump has.

    Raises:
        DataError: it has none such.
    """
    tasks = [name.removeprefix(_AUC) for name in pl.read_parquet_schema(table.path) if name.startswith(_AUC)]
    if not tasks or task not in (None, *tasks):
        raise DataError(f"{table.path}: has no task {task!r}; it has {', '.join(tasks)}")
    return task or tasks[0]


def paired_interval(
    difference: NDArray[np.float64], profile: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the mean difference when profiles are drawn again with replacement.

    Profiles and not requests are drawn: requests of one profile resemble each other.

    Args:
        difference: `[B]` of the two AUCs of each request.
        profile: `[B]` whose request it is.
        seed: of the draws.
    """
    _, group = np.unique(profile, return_inverse=True)
    counts_P = np.bincount(group).astype(np.float64)
    sums_P = np.bincount(group, weights=difference)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(NUM_SAMPLES // _SAMPLES_PER_CHUNK):
        drawn = rng.integers(len(counts_P), size=(_SAMPLES_PER_CHUNK, len(counts_P)))
        means.append(sums_P[drawn].sum(axis=1) / counts_P[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
