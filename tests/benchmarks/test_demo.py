"""The demo's order of jobs, its fallback, and what a second run reuses; the jobs themselves are stubs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from benchmarks.stations import StationFailed, Stations
from foundation.errors import DownloadError

FIGURES = {"count": 5, "p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "foundation.sources.movielens": {"profiles": 6040, "events": 1_000_209, "items": 3706},
    "foundation.sources.synthetic": {"profiles": 60, "events": 2_000, "items": 150},
    "foundation.pretrain": {"tokens_per_s": 1.0},
    "foundation.evaluate": {"hr@10": 0.3, "ndcg@10": 0.2, "popularity_ndcg@10": 0.02, "profiles": 604},
    "ranker.features": {"requests": {"test": 4572}, "seconds_per_million_log_events": 2.0},
    "ranker.cotrain": {"tasks": {"watch": {"auc": 0.9, "normalised_entropy": 0.5, "calibration": 1.0}}},
    "ranker.compare": {
        "gauc_first": 0.9,
        "gauc_second": 0.8,
        "gauc_difference": 0.1,
        "gauc_difference_ci95": [0.05, 0.15],
    },
    "serving.export": {"kernels": {"fused": {}, "not_fused": {}}},
    "benchmarks.request_path": {
        "parity": {"split": 0.0, "exported": 0.0},
        "latency": dict.fromkeys(("split", "unsplit", "exported"), FIGURES),
        "slower_than_split": {"unsplit": {"ratio": 30.0, "ci95": [28.0, 32.0]}},
        "settings": {"candidates": 500},
        "environment": {"threads": 2},
    },
    "benchmarks.replay": {
        **FIGURES,
        "requests": 200,
        "profiles_encoded": 200,
        "candidates": 100_000,
        "errors": 0,
        "parity": 0.0,
    },
}


class Stubs(Stations):
    """Notes the jobs instead of running them; `failing` ones fail with `status`."""

    def __init__(self, *failing: str, status: int = 2) -> None:
        super().__init__(io.StringIO())
        self.failing, self.status = failing, status
        self.jobs: list[tuple[str, list[str]]] = []

    def run(self, title: str, module: str, *arguments: object) -> dict[str, Any]:
        self.jobs.append((module, [str(argument) for argument in arguments]))
        if module in self.failing:
            raise StationFailed(title, self.status)
        return DOCUMENTS[module]

    @contextmanager
    def running(self, title: str, module: str, *arguments: object) -> Iterator[dict[str, Any]]:
        self.jobs.append((module, [str(argument) for argument in arguments]))
        yield {"grpc": "127.0.0.1:1", "metrics": "http://127.0.0.1:2/metrics"}
        self.jobs.append(("stopped", []))

    def text(self) -> str:
        assert isinstance(self.out, io.StringIO)
        return self.out.getvalue()

    def modules(self) -> list[str]:
        return [module for module, _ in self.jobs]


@pytest.fixture
def marquee_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARQUEE_HOME", str(tmp_path))
    return tmp_path


def test_jobs_run_in_order_and_the_server_stops_last(marquee_home: Path) -> None:
    stubs = Stubs()
    document = demo.Demo(demo.DemoConfig(), stubs).run()
    assert stubs.modules() == [
        "foundation.sources.movielens",
        "foundation.pretrain",
        "foundation.evaluate",
        "ranker.features",
        "ranker.cotrain",
        "ranker.cotrain",
        "ranker.compare",
        "serving.export",
        "benchmarks.request_path",
        "serving.launch",
        "benchmarks.replay",
        "stopped",
    ]
    towers = [
        arguments[arguments.index("--tower") + 1] for module, arguments in stubs.jobs if "cotrain" in module
    ]
    assert towers == ["decoder", "pooled"]
    assert document["data"] == DOCUMENTS["foundation.sources.movielens"]
    assert document["serving"]["candidates"] == 100_000


def test_both_rankers_train_with_the_same_settings(marquee_home: Path) -> None:
    stubs = Stubs()
    demo.Demo(demo.DemoConfig(), stubs).run()
    first, second = (arguments for module, arguments in stubs.jobs if module == "ranker.cotrain")
    assert "--rows" in first
    differing = {one for one, other in zip(first, second, strict=True) if one != other}
    assert differing == {"decoder", str(marquee_home / "runs" / "demo-movielens" / "ranker")}


def test_without_movielens_the_synthetic_world_is_used_and_said(marquee_home: Path) -> None:
    stubs = Stubs("foundation.sources.movielens", status=DownloadError.exit_status)
    document = demo.Demo(demo.DemoConfig(), stubs).run()
    assert stubs.modules()[:3] == [
        "foundation.sources.movielens",
        "foundation.sources.synthetic",
        "foundation.pretrain",
    ]
    assert "using the synthetic world" in stubs.text()
    assert document["data"] == DOCUMENTS["foundation.sources.synthetic"]
    data = dict(zip(stubs.jobs[2][1], stubs.jobs[2][1][1:], strict=False))["--data"]
    assert data == str(marquee_home / "data" / "synthetic-demo")


@pytest.mark.usefixtures("marquee_home")
def test_data_that_are_wrong_are_not_passed_over() -> None:
    with pytest.raises(StationFailed, match="data"):
        demo.Demo(demo.DemoConfig(), Stubs("foundation.sources.movielens")).run()


def test_a_failed_job_ends_the_demo(marquee_home: Path) -> None:
    stubs = Stubs("serving.export")
    with pytest.raises(StationFailed, match="export"):
        demo.Demo(demo.DemoConfig(), stubs).run()
    assert "serving.launch" not in stubs.modules()


def test_a_repository_is_written_anew(marquee_home: Path) -> None:
    repository = marquee_home / "runs" / "demo-movielens" / "repository"
    repository.mkdir(parents=True)
    (repository / "stale").touch()
    stubs = Stubs()
    demo.Demo(demo.DemoConfig(), stubs).run()
    assert "serving.export" in stubs.modules()
    assert not repository.exists()


@pytest.mark.usefixtures("marquee_home")
@pytest.mark.parametrize(("chosen", "sent"), [(None, "100"), (7, "7")])
def test_the_tiny_world_is_asked_for_as_many_candidates_as_it_has(chosen: int | None, sent: str) -> None:
    stubs = Stubs()
    demo.Demo(demo.DemoConfig(world="tiny", candidates=chosen), stubs).run()
    jobs = dict(stubs.jobs)
    for module in ("benchmarks.request_path", "benchmarks.replay"):
        assert jobs[module][jobs[module].index("--candidates") + 1] == sent
