"""The main job, end to end: `python -m benchmarks.demo`, which is what `make demo` runs.

    data -> pre-train -> evaluate -> make rows -> co-train with and without decoder -> export -> time -> serve -> rank

Every station is a command that it prints first, so that each can be run by hand. A second run reuses what is finished,
and an interrupted one goes on where it stopped. The last line is one JSON document.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import tyro

from benchmarks.demo_report import Document, Findings, assemble
from benchmarks.stations import StationFailed, Stations
from foundation.errors import DownloadError
from foundation.home import home

World = Literal["movielens", "synthetic", "tiny"]
TASK = "watch"


@dataclass(frozen=True)
class Preset:
    """What one world's demo passes on to the jobs.

    Attributes:
        source: module and arguments of the data source.
        pretrain: arguments of foundation.pretrain.
        rows: arguments of ranker.features; where requests are made of events, as many draws as the longer of the two
            trainings has epochs, so that neither sees a request twice.
        cotrain: arguments of ranker.cotrain.
        candidates: of a request, where the command doesn't say: as many new to a profile must be in the catalogue.
    """

    source: tuple[str, ...]
    pretrain: tuple[str, ...]
    rows: tuple[str, ...]
    cotrain: tuple[str, ...]
    candidates: int = 500


PRESETS: dict[World, Preset] = {
    "movielens": Preset(
        source=("foundation.sources.movielens",), pretrain=(), rows=("--draws", "20"), cotrain=()
    ),
    "synthetic": Preset(
        source=("foundation.sources.synthetic", "--profiles", "2000", "--items", "1000", "--sessions", "40"),
        pretrain=(),
        rows=(),
        cotrain=(),
    ),
    "tiny": Preset(
        source=("foundation.sources.synthetic", "--profiles", "60", "--items", "150", "--sessions", "12"),
        pretrain=("--epochs", "1"),
        rows=(),
        cotrain=(),
        candidates=100,
    ),
}


@dataclass(frozen=True)
class DemoConfig:
    """Runs every job once, on real data, and says what came of it.

    Attributes:
        world: movielens (1M), synthetic, or tiny: a small synthetic world, to see in a minute that all parts work.
            Where MovieLens can't be had, synthetic is used instead.
        requests: sent to the server.
        candidates: of each request; None for 500, or 100 in the tiny world.
        threads: of the timed and the served model; 0 for all available cores.
    """

    world: World = "movielens"
    requests: int = 200
    candidates: int | None = None
    threads: int = 0


class Demo:
    """The stations of one run, under $MARQUEE_HOME/runs/demo-WORLD."""

    def __init__(self, config: DemoConfig, stations: Stations) -> None:
        self.config = config
        self.stations = stations

    def run(self) -> Document:
        """All stations; returns the closing document.

        Raises:
            StationFailed: a job failed; it has said why.
        """
        world, data_document = self._data()
        preset, data = PRESETS[world], _data_folder(world)
        candidates = preset.candidates if self.config.candidates is None else self.config.candidates
        runs = home() / "runs" / f"demo-{world}"
        run, release = self.stations.run, runs / "foundation" / "release"
        pretraining = run(
            "pre-train",
            "foundation.pretrain",
            *("--data", data, "--out", runs / "foundation", *preset.pretrain),
        )
        evaluation = run("evaluate", "foundation.evaluate", "--release", release, "--data", data)
        rows = runs / "rows"
        made = run(
            "make rows",
            "ranker.features",
            *("--data", data, "--release", release, "--out", rows, *preset.rows),
        )
        shared = ("--rows", rows, "--release", release, *preset.cotrain)
        with_decoder, without = runs / "ranker", runs / "ranker_pooled"
        cotraining = run(
            "co-train with decoder", "ranker.cotrain", *shared, "--out", with_decoder, "--tower", "decoder"
        )
        run("co-train without decoder", "ranker.cotrain", *shared, "--out", without, "--tower", "pooled")
        comparison = run(
            "compare", "ranker.compare", "--first", with_decoder, "--second", without, "--task", TASK
        )
        ranker, repository = with_decoder / "ranker", runs / "repository"
        exported = self._export(ranker, repository, data)
        latency = self._time(ranker, repository, data, candidates)
        replay = self._serve(ranker, repository, data, candidates)
        found = Findings(
            data_document, pretraining, evaluation, made, cotraining, comparison, exported, latency, replay
        )
        return {**assemble(found, TASK), "seconds": self.stations.seconds}

    def _data(self) -> tuple[World, Document]:
        """The world that could be had, and its document."""
        world = self.config.world
        try:
            return world, self._source(world)
        except StationFailed as failure:
            # Whatever else is wrong was said, and no other data will do.
            if failure.status != DownloadError.exit_status:
                raise
        self.stations.say(
            "MovieLens-1M is not cached and could not be fetched: using the synthetic world instead"
        )
        return "synthetic", self._source("synthetic")

    def _source(self, world: World) -> Document:
        module, *arguments = PRESETS[world].source
        return self.stations.run("data", module, *arguments, "--out", _data_folder(world))

    def _export(self, ranker: Path, repository: Path, data: Path) -> Document:
        """Write the repository anew: it holds code as well as the ranker, and takes seconds."""
        shutil.rmtree(repository, ignore_errors=True)
        command = ("serving.export", "--ranker", ranker, "--out", repository, "--data", data)
        return self.stations.run("export", *command)

    def _time(self, ranker: Path, repository: Path, data: Path, candidates: int) -> Document:
        """Whole against cut, in process, on requests of natural length; the whole graph on five of them."""
        config = self.config
        return self.stations.run(
            "time in process",
            "benchmarks.request_path",
            *("--ranker", ranker, "--data", data, "--repository", repository, "--no-serve"),
            *("--requests", 100, "--blocks", 5, "--candidates", candidates, "--history", 0),
            *("--threads", config.threads),
        )

    def _serve(self, ranker: Path, repository: Path, data: Path, candidates: int) -> Document:
        config = self.config
        command = ("serving.launch", "--repository", repository, "--threads", config.threads)
        with self.stations.running("serve", *command) as endpoints:
            return self.stations.run(
                "rank",
                "benchmarks.replay",
                *("--ranker", ranker, "--data", data),
                *("--url", endpoints["grpc"], "--metrics-url", endpoints["metrics"]),
                *("--requests", config.requests, "--candidates", candidates),
            )


def _data_folder(world: World) -> Path:
    names = {"movielens": "movielens-1m", "synthetic": "synthetic-demo", "tiny": "synthetic-tiny"}
    return home() / "data" / names[world]


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """The command."""
    config = tyro.cli(DemoConfig, prog="python -m benchmarks.demo")
    # An exit from here on stops the running job on its way out, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminated)
    stations = Stations()
    try:
        document = Demo(config, stations).run()
    except StationFailed as failure:
        print(f"error: {failure}; the command above says why", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    stations.say(
        "\n" + "\n".join(f"{seconds:9,.1f} s  {title}" for title, seconds in stations.seconds.items())
    )
    stations.say(f"{sum(stations.seconds.values()):9,.1f} s  in all\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
