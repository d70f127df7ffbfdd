"""Titles without a history: `python -m benchmarks.cold_titles [--content] [--epochs 8]`.

Takes a tenth of the titles out of training altogether, pre-trains on what is left, and asks how well their viewers'
events are predicted: among the cold titles against popularity by genre, and what the measures for cold titles cost
on warm ones. Two releases of one seed, size and number of epochs:

    full    ids hidden from training steps at the rate at which validation profiles' events meet a cold title;
            with --content, content embeddings
    plain   no id hidden, no content embedding: the same model with no measure for cold titles

Tested are events of held-out profiles, none of which is in training, from their full history, cold titles included.
Under --out: `data/` (the dataset without the cold titles' events), `data-content/`, and a run each; started again,
the command goes on from what is there. The last line is one JSON document.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.cold_evaluation import draw_tested, item_rows, model_figures, popularity_figures, report
from benchmarks.cold_figures import gates_by_count
from benchmarks.environment import stamp
from benchmarks.report import environment_lines
from benchmarks.stations import StationFailed, Stations
from benchmarks.title_split import draw_titles, write_without
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.home import home
from foundation.release import load_release
from foundation.sources.movielens import write_movielens
from foundation.split import TEST, VALIDATION, profile_roles

BLOCK = 40
"""Events that a window drops at a time, as by default, or half of it where that is fewer."""


@dataclass(frozen=True)
class ColdTitlesConfig:
    """Measures what a model makes of titles that it was never trained on.

    Attributes:
        data: dataset folder without content embeddings; by default MovieLens-1M, fetched where it isn't yet.
        out: folder for derived data and runs.
        share: of the titles to take out of training.
        content: give "full" content embeddings of titles and metadata; needs requirements/content.txt.
        genres: name of the item feature that popularity is counted by.
        masked_share: of the ids that training steps of "full" hide; negative: as often as validation profiles'
            events meet a cold title.
        epochs: of each pre-training run.
        width: of the decoder.
        layers: of the decoder.
        window: history events that the decoder sees at most; older ones are dropped 40 at a time, or half of it
            where that is fewer.
        tokens_per_batch: of a training step.
        max_events: of one profile, cold ones, and again warm ones; drawn.
        role: held-out profiles to test on: settings are chosen on validation, and test is looked at once.
        seed: of the titles, of both runs, of the events that are drawn, and of the bootstrap.
        json: print the JSON document alone.
    """

    data: Path | None = None
    out: Path = field(default_factory=lambda: home() / "runs" / "cold-titles")
    share: float = 0.1
    content: bool = False
    genres: str = "genres"
    masked_share: float = -1.0
    epochs: int = 8
    width: int = 64
    layers: int = 2
    window: int = 200
    tokens_per_batch: int = 3_000
    max_events: int = 20
    role: Literal["test", "validation"] = "test"
    seed: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "width", "layers", "window", "tokens_per_batch", "max_events", "seed"):
            least = 0 if name == "seed" else 1
            if getattr(self, name) < least:
                raise DataError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}"
                )
        if self.width % 4:
            raise DataError(f"--width is {self.width}; it must be a multiple of 4 (two heads)")
        if not 0 < self.share < 1:
            raise DataError(f"--share is {self.share}; it must be in (0, 1)")
        if self.masked_share >= 1:
            raise DataError(f"--masked-share is {self.masked_share}; it must be below 1")


Document = dict[str, Any]


def measure(config: ColdTitlesConfig, stations: Stations) -> Document:
    """Everything the command reports, as the JSON document.

    Args:
        config: what to measure.
        stations: runs the jobs, and is told each step.

    Raises:
        DataError: settings and data don't fit, or no tested event is of a cold (warm) title.
        StationFailed: a job failed; it has said why.
    """
    # Before the measurement: afterwards the load average would be our own.
    environment = stamp()
    stations.say("\n".join(environment_lines(environment)))
    dataset = load_dataset(config.data) if config.data else _movielens(stations)
    genre_columns = _columns_of(dataset, config.genres)
    is_cold = draw_titles(dataset.num_items, config.share, config.seed)
    data = _derive(config, dataset, is_cold, stations)
    role = TEST if config.role == "test" else VALIDATION
    role_of_event = np.repeat(profile_roles(dataset), np.diff(dataset.offsets))
    is_tested = role_of_event == role
    tested = draw_tested(dataset, is_tested, is_cold, config.max_events, config.seed)
    cold_share = float(is_cold[item_rows(dataset)[is_tested]].mean())
    # What is hidden in training must not be chosen by what is tested.
    measured = float(is_cold[item_rows(dataset)[role_of_event == VALIDATION]].mean())
    masked_share = round(measured if config.masked_share < 0 else config.masked_share, 4)
    releases = {
        "full": load_release(_pretrain(config, stations, "full", data["full"], masked_share)),
        "plain": load_release(_pretrain(config, stations, "plain", data["plain"], 0.0)),
    }
    stations.say(f"\nscoring {len(tested.points.row):,} events of {config.role} profiles, each by both")
    models = {name: model_figures(release, tested, name) for name, release in releases.items()}
    tower = releases["plain"].model.item_tower
    popularity = popularity_figures(tested, tower.feature_rows.numpy(), tower.counts.numpy(), genre_columns)
    return {
        "benchmark": "cold_titles",
        "data": str(dataset.folder),
        **report(tested, models, popularity, config.seed),
        "gates": {name: gates_by_count(release.model.item_tower) for name, release in releases.items()},
        "settings": {
            **{name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
            "cold_share_of_events": cold_share,
            "masked_shares": {"full": masked_share, "plain": 0.0},
        },
        "environment": environment,
    }


def _movielens(stations: Stations) -> Dataset:
    return write_movielens(home() / "data" / "movielens-1m", "1m", stations.say)


def _derive(
    config: ColdTitlesConfig, dataset: Dataset, is_cold: NDArray[np.bool_], stations: Stations
) -> dict[str, Path]:
    """The data without the cold titles' events that each release is trained on."""
    if dataset.schema.columns.content_embedding is not None:
        raise DataError(
            f"{dataset.folder / 'schema.toml'}: [columns] content_embedding is set, and 'plain' is to have none; "
            "give data without, --content adds it to a copy"
        )
    plain, full = config.out / "data", config.out / "data-content"
    left = write_without(dataset, is_cold, config.seed, plain)
    stations.say(
        f"{plain}: without {int(is_cold.sum()):,} of {dataset.num_items:,} titles, "
        f"{left.num_events:,} of {dataset.num_events:,} events are left"
    )
    if not config.content:
        return {"full": plain, "plain": plain}
    write_without(dataset, is_cold, config.seed, full)
    stations.run("content embeddings", "foundation.content", "--data", full, "--write-schema")
    return {"full": full, "plain": plain}


def _columns_of(dataset: Dataset, name: str) -> slice:
    """Columns of the metadata rows that hold the item feature `name`."""
    first = 0
    for feature in dataset.schema.item_features:
        if feature.name == name:
            return slice(first, first + feature.max_values)
        first += feature.max_values
    names = ", ".join(feature.name for feature in dataset.schema.item_features) or "none"
    raise DataError(f"--genres is {name!r}; item features of {dataset.folder / 'schema.toml'}: {names}")


def _pretrain(
    config: ColdTitlesConfig, stations: Stations, name: str, data: Path, masked_share: float
) -> Path:
    """Runs, resumes or reuses a pre-training run; the folder of its release."""
    block = min(BLOCK, max(1, config.window // 2))
    document = stations.run(
        f"pre-train {name}",
        "foundation.pretrain",
        *("--data", data, "--out", config.out / f"{name}-{data.name}"),
        *("--masked-share", masked_share, "--epochs", config.epochs, "--seed", config.seed),
        *("--decoder.width", config.width, "--decoder.num-layers", config.layers),
        *("--window.window", config.window, "--window.block", block),
        *("--tokens-per-batch", config.tokens_per_batch),
    )
    return Path(document["release"])


def table(document: Document) -> str:
    """The figures for people."""
    cold, warm, settings = document["cold"], document["warm"], document["settings"]
    lines = [
        f"\n{cold['titles']:,} cold titles, {settings['cold_share_of_events']:.1%} of the {settings['role']} "
        f"profiles' events; full hides {settings['masked_shares']['full']:.1%} of the ids",
        f"\n{cold['events']:,} events of cold titles, {cold['profiles']:,} profiles{'95 % interval':>27}",
    ]
    shown = {
        "recall@10": "full, among cold titles",
        "plain_recall@10": "plain",
        "popularity_recall@10": f"popularity by genre ({cold['popularity'].removeprefix('genre_')})",
        "metadata_popularity_recall@10": "popularity by all metadata",
        "chance_recall@10": "chance",
        "ratio": "full to popularity",
        "plain_ratio": "full to plain",
        "all_titles_hr@10": "full, among all titles",
        "plain_all_titles_hr@10": "plain, among all titles",
    }
    lines += [_line(label, cold[name], cold["ci95"][name]) for name, label in shown.items()]
    lines.append(f"\n{warm['events']:,} events of warm titles, {warm['profiles']:,} profiles")
    warm_shown = {"ndcg@10": "among warm", "hr@10": "among warm", "all_titles_ndcg@10": "among all"}
    warm_shown["all_titles_hr@10"] = "among all"
    for name, among in warm_shown.items():
        of, label = warm[name], f"{name.removeprefix('all_titles_')} {among}"
        lines += [_line(f"{label}, {each}", of[each], None) for each in ("full", "plain")]
        lines.append(_line(f"{label}, relative change", of["relative_change"], of["ci95"]))
    lines.append(f"\n{'trust in the id':18}{'titles':>10}{'untrained':>12}{'full':>10}{'plain':>10}")
    for full, plain in zip(*(document["gates"][name] for name in ("full", "plain")), strict=True):
        lines.append(
            f"{full['from_count']:>6,} events up{'':3}{full['titles']:10,}{full['initial_gate']:12.3f}"
            f"{full['gate']:10.3f}{plain['gate']:10.3f}"
        )
    return "\n".join(lines)


def _line(label: str, value: float | None, interval: list[float] | None) -> str:
    figure = "-" if value is None else f"{value:.4f}"
    return f"{label:34}{figure:>10}" + (f"   {interval[0]:.4f} .. {interval[1]:.4f}" if interval else "")


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """The command."""
    config = tyro.cli(ColdTitlesConfig, prog="python -m benchmarks.cold_titles")
    # An exit from here on stops the running job on its way out, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminated)
    with ExitStack() as stack:
        out = stack.enter_context(Path(os.devnull).open("w")) if config.json else sys.stdout
        stations = Stations(out)
        try:
            document = measure(config, stations)
        except StationFailed as failure:
            raise SystemExit(f"error: {failure}; the command above says why") from None
        stations.say(table(document))
    print(json.dumps(document))


if __name__ == "__main__":
    run_command(main)
