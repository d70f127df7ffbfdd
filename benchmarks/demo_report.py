"""The demo's closing document, from what each job printed last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """The JSON document of each job, as it printed it.

    Attributes:
        data: of the data source.
        pretraining: of foundation.pretrain.
        evaluation: of foundation.evaluate.
        rows: of ranker.features.
        cotraining: of ranker.cotrain with the decoder.
        comparison: of ranker.compare, decoder first.
        exported: of serving.export.
        latency: of benchmarks.request_path.
        replay: of benchmarks.replay.
    """

    data: Document
    pretraining: Document
    evaluation: Document
    rows: Document
    cotraining: Document
    comparison: Document
    exported: Document
    latency: Document
    replay: Document


def assemble(found: Findings, task: str) -> Document:
    """The demo's JSON document.

    Args:
        found: what the jobs printed.
        task: whose ranking figures are reported.

    Raises:
        KeyError: a job's document lacks a figure.
    """
    latency, replay = found.latency, found.replay
    return {
        "data": _taken(found.data, "profiles", "events", "items"),
        "foundation": {
            **_taken(found.evaluation, "hr@10", "ndcg@10", "popularity_ndcg@10"),
            "tokens_per_s": found.pretraining["tokens_per_s"],
            "test_profiles": found.evaluation["profiles"],
        },
        "rows": _taken(found.rows, "requests", "seconds_per_million_log_events"),
        "ranker": {
            "task": task,
            **_taken(found.cotraining["tasks"][task], "auc", "normalised_entropy", "calibration"),
            "gauc": found.comparison["gauc_first"],
            "gauc_without_decoder": found.comparison["gauc_second"],
            "gauc_difference": found.comparison["gauc_difference"],
            "gauc_difference_ci95": found.comparison["gauc_difference_ci95"],
        },
        "parity": {**_taken(latency["parity"], "split", "exported"), "served": replay["parity"]},
        "kernels": _taken(found.exported["kernels"], "fused", "not_fused"),
        "in_process": {
            "split_p50_ms": latency["latency"]["split"]["p50_ms"],
            "unsplit_p50_ms": latency["latency"]["unsplit"]["p50_ms"],
            "exported_p50_ms": latency["latency"]["exported"]["p50_ms"],
            "unsplit_vs_split": latency["slower_than_split"]["unsplit"],
            "unsplit_requests": latency["latency"]["unsplit"]["count"],
            "candidates": latency["settings"]["candidates"],
            "threads": latency["environment"]["threads"],
        },
        "serving": _taken(
            replay, "requests", "profiles_encoded", "candidates", "errors", "p50_ms", "p95_ms", "p99_ms"
        ),
    }


def _taken(document: Document, *names: str) -> Document:
    return {name: document[name] for name in names}
