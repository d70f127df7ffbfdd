"""The demo's closing document holds every figure that it promises, and each from the right job."""

from __future__ import annotations

import json

import pytest

from benchmarks.demo_report import Findings, assemble

FOUND = Findings(
    data={"profiles": 6040, "events": 1_000_209, "items": 3706},
    pretraining={"tokens_per_s": 20_000.0, "steps": 10},
    evaluation={"hr@10": 0.3, "ndcg@10": 0.17, "popularity_ndcg@10": 0.02, "profiles": 604, "mrr": 0.1},
    rows={"requests": {"test": 4572}, "seconds_per_million_log_events": 2.5, "bytes": 7},
    cotraining={
        "tasks": {
            "watch": {"auc": 0.9, "gauc": 0.89, "normalised_entropy": 0.5, "calibration": 0.97},
            "like": {"auc": 0.6, "gauc": 0.61, "normalised_entropy": 0.8, "calibration": 1.1},
        }
    },
    comparison={
        "gauc_first": 0.89,
        "gauc_second": 0.85,
        "gauc_difference": 0.04,
        "gauc_difference_ci95": [0.03, 0.05],
    },
    exported={
        "repository": "out",
        "kernels": {"fused": {"candidate.interaction": "marquee::score_candidates"}, "not_fused": {}},
    },
    latency={
        "parity": {"unsplit": 0.0, "split": 1e-7, "exported": 2e-7},
        "latency": {
            "split": {"count": 100, "p50_ms": 5.0},
            "unsplit": {"count": 5, "p50_ms": 700.0},
            "exported": {"count": 100, "p50_ms": 3.0},
        },
        "slower_than_split": {"unsplit": {"ratio": 140.0, "ci95": [130.0, 150.0]}},
        "settings": {"candidates": 500},
        "environment": {"threads": 2},
    },
    replay={
        "requests": 200,
        "profiles_encoded": 200,
        "candidates": 100_000,
        "errors": 0,
        "parity": 3e-7,
        "p50_ms": 4.0,
        "p95_ms": 5.0,
        "p99_ms": 6.0,
    },
)

# Word for word what the project promises of the demo's last line.
PROMISED = {
    "data": {"profiles": 6040, "events": 1_000_209, "items": 3706},
    "foundation": {"hr@10": 0.3, "ndcg@10": 0.17, "popularity_ndcg@10": 0.02, "tokens_per_s": 20_000.0},
    "rows": {"seconds_per_million_log_events": 2.5},
    "ranker": {
        "auc": 0.9,
        "gauc": 0.89,
        "gauc_without_decoder": 0.85,
        "gauc_difference_ci95": [0.03, 0.05],
        "normalised_entropy": 0.5,
        "calibration": 0.97,
    },
    "parity": {"split": 1e-7, "exported": 2e-7, "served": 3e-7},
    "kernels": {"fused": {"candidate.interaction": "marquee::score_candidates"}, "not_fused": {}},
    "in_process": {"split_p50_ms": 5.0, "unsplit_p50_ms": 700.0},
    "serving": {
        "requests": 200,
        "profiles_encoded": 200,
        "candidates": 100_000,
        "p50_ms": 4.0,
        "p99_ms": 6.0,
    },
}


def test_every_promised_figure_is_there_and_from_the_right_job() -> None:
    document = json.loads(json.dumps(assemble(FOUND, "watch")))
    for part, promised in PROMISED.items():
        assert {name: document[part][name] for name in promised} == promised


def test_figures_are_of_the_task_asked_for() -> None:
    assert assemble(FOUND, "like")["ranker"]["auc"] == 0.6


def test_a_missing_figure_is_an_error_not_a_hole() -> None:
    incomplete = Findings(**{**vars(FOUND), "replay": {"requests": 200}})
    with pytest.raises(KeyError, match="parity"):
        assemble(incomplete, "watch")
