"""The feature job: request rows from logs, with the library that serving uses."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from foundation.atomic import atomic_file
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError
from foundation.manifest import file_hash
from foundation.release import Release, load_release
from foundation.run_record import data_hash
from ranker.assembly import row_features
from ranker.features.facet_names import facet_names, save_facet_names
from ranker.requests.logged import LoggedConfig
from ranker.requests.request import RequestConfig
from ranker.requests.shards import request_files
from ranker.rows.building import RowsBuild, draw_folder, shards_of, total
from ranker.rows.checks import check_release
from ranker.rows.folder import save_tables
from ranker.rows.making import RowMaker
from ranker.rows.manifest import FORMAT, MANIFEST, ReleaseOrigin, RowsManifest, read_rows_manifest
from ranker.rows.parquet import Widths
from ranker.rows.sources import DrawConfig, Source, request_source
from ranker.schema import Task, are_logged, load_candidate_features, load_tasks


@dataclass(frozen=True)
class RowsConfig:
    """Makes request rows of a dataset: what co-training reads.

    Attributes:
        data: dataset folder. Its events are held in memory, logged requests are streamed.
        release: folder of the foundation release whose vocabularies look up the rows.
        out: new folder of the rows.
        seed: of requests that are made of events.
        draws: times that training requests are made anew of events; logged requests are all taken, once, and nothing
            of `requests` is heeded.
        validation_per_profile: validation requests of a profile that are made of events, at most; 0 for all.
        unknown_items: count the items of the catalogue that the release lacks, which are out of vocabulary, or stop.
        requests: how requests are made of events.
        logged: what to do about bad logged requests.
    """

    data: Path
    release: Path
    out: Path
    seed: int = 0
    draws: int = 5
    validation_per_profile: int = 2
    unknown_items: Literal["count", "stop"] = "count"
    requests: tyro.conf.OmitArgPrefixes[RequestConfig] = field(
        default_factory=lambda: RequestConfig(per_profile=1)
    )
    logged: tyro.conf.OmitArgPrefixes[LoggedConfig] = field(default_factory=LoggedConfig)

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("draws", 1), ("validation_per_profile", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def make_rows(config: RowsConfig) -> dict[str, Any]:
    """Makes the rows, or what an earlier start of this job left to make; rows that are there already stay.

    Returns:
        the JSON document of the last line: requests, what was skipped, and the cost.

    Raises:
        DataError: data, release or settings are wrong or don't fit each other, a bad request is met and the policy is
            to stop, or `out` holds something else.
    """
    started_s = time.perf_counter()
    dataset, release = load_dataset(config.data), load_release(config.release)
    num_unknown = check_release(release, dataset)
    if num_unknown and config.unknown_items == "stop":
        raise DataError(
            f"{config.data / 'items.parquet'}: has {num_unknown} items that the release {config.release} lacks;"
            " pre-train anew, or --unknown-items count"
        )
    tasks = load_tasks(dataset.folder / "schema.toml")
    settings = _settings(config, dataset, release, tasks)
    if config.out.exists():
        return _made_already(config.out, settings)
    build = RowsBuild(config.out, settings)
    drawing = DrawConfig(config.requests, config.validation_per_profile, config.draws, config.seed)
    source = request_source(dataset, tasks, drawing, config.logged)
    features, items = row_features(dataset, release, source.candidates)
    records = [source.tally | {"shards": {}}, *_write_units(build, source, RowMaker(dataset, features))]
    widths = next((record["widths"] for record in records if record.get("widths")), None)
    if widths is None or not shards_of(records, draw_folder(0)):
        raise DataError(f"{config.data}: has no training request behind the cut; nothing to train on")
    manifest = RowsManifest(
        format=FORMAT,
        release=ReleaseOrigin(
            release.manifest.version, release.manifest.vocabulary_hash, release.manifest.trained_on.cut
        ),
        data_hash=settings["data"],
        tasks=tuple(task.name for task in tasks),
        widths=Widths(**widths),
        negatives_kept=_negatives_kept(tasks, total(records, "noticed")),
        draws=tuple(shards_of(records, draw_folder(draw)) for draw in range(source.num_draws)),
        validation=shards_of(records, "validation"),
        test=shards_of(records, "test"),
        settings=settings,
        counts=_counts(records, num_unknown),
        cost=_cost(build.folder, dataset, records, time.perf_counter() - started_s),
    )
    save_tables(build.folder, features, items, tasks)
    save_facet_names(build.folder, facet_names(dataset))
    with atomic_file(build.folder / MANIFEST) as partial:
        partial.write_text(manifest.to_json(), encoding="utf-8")
    build.finish()
    return _report(config.out, manifest)


def _settings(
    config: RowsConfig, dataset: Dataset, release: Release, tasks: tuple[Task, ...]
) -> dict[str, Any]:
    """All that the rows come from, as plain values."""
    settings = asdict(config) | {
        "data": data_hash(dataset),
        "release": release.manifest.version,
        "tasks": [asdict(task) for task in tasks],
        "candidate_features": [],
        "logs": {},
    }
    if are_logged(tasks):
        declared = load_candidate_features(dataset.folder / "schema.toml")
        settings["candidate_features"] = [asdict(feature) for feature in declared]
        settings["logs"] = {path.name: file_hash(path) for path in request_files(dataset.folder)}
    del settings["out"]
    return json.loads(json.dumps(settings))


def _made_already(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The document of rows that are there, if these settings made them."""
    if not (out / MANIFEST).is_file():
        raise DataError(f"{out}: is there already and holds no rows; choose another --out")
    manifest = read_rows_manifest(out)
    for name, value in settings.items():
        if manifest.settings.get(name) != value:
            raise DataError(
                f"{out / MANIFEST}: rows are there already, made with {name} = {manifest.settings.get(name)!r} and not"
                f" {value!r}; choose another --out"
            )
    return _report(out, manifest)


def _write_units(build: RowsBuild, source: Source, maker: RowMaker) -> list[dict[str, Any]]:
    """Makes the units that are still to make."""
    records = []
    # Without a terminal there is no bar; what was done is in the summary.
    with tqdm(total=sum(unit.num_requests for unit in source.units), unit="request", disable=None) as bar:
        for number, unit in enumerate(source.units):
            record = build.done(number)
            if record is None:
                record = build.write(number, unit, maker, bar.update)
            records.append(record)
    return records


def _negatives_kept(tasks: tuple[Task, ...], noticed: dict[str, int]) -> tuple[float, ...]:
    """By task, the share of negatives that are among the candidates."""
    sampled, possible = noticed.get("negatives sampled", 0), noticed.get("negatives possible", 0)
    of_sampled = sampled / possible if 0 < sampled < possible else 1.0
    return tuple(of_sampled if task.kind == "interaction" else task.negatives_kept for task in tasks)


def _counts(records: list[dict[str, Any]], num_unknown: int) -> dict[str, Any]:
    examples: dict[str, str] = {}
    for record in records:
        examples = record.get("examples", {}) | examples
    return {
        "rows": total(records, "rows"),
        "skipped": total(records, "skipped"),
        "noticed": total(records, "noticed"),
        "examples": examples,
        "catalogue items that the release lacks": num_unknown,
    }


def _cost(folder: Path, dataset: Dataset, records: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Seconds of this start, and seconds and bytes per million log events: events, and candidates that were logged."""
    written = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    log_events = dataset.num_events + total(records, "noticed").get("candidates read", 0)
    return {
        "seconds": seconds,
        "log_events": log_events,
        "seconds_per_million_log_events": seconds / log_events * 1e6,
        "bytes": written,
        "bytes_per_million_log_events": written / log_events * 1e6,
    }


def _report(out: Path, manifest: RowsManifest) -> dict[str, Any]:
    """The document; and the summary, for people, on stderr."""
    counts, cost = manifest.counts, manifest.cost
    lines = [f"{out}: request rows"]
    for title in ("rows", "skipped", "noticed"):
        lines += [f"  {title}: {name}: {number:,}" for name, number in counts[title].items()]
    lines += [f"  for example: {example}" for example in counts["examples"].values()]
    lines.append(
        f"  cost: {cost['seconds']:.1f} s, {cost['seconds_per_million_log_events']:.2f} s and"
        f" {cost['bytes_per_million_log_events'] / 1e6:.1f} MB per million log events"
    )
    print("\n".join(lines), file=sys.stderr, flush=True)
    return {
        "rows": str(out),
        "requests": {
            "train": [sum(sum(shard.row_groups) for shard in draw) for draw in manifest.draws],
            "validation": sum(sum(shard.row_groups) for shard in manifest.validation),
            "test": sum(sum(shard.row_groups) for shard in manifest.test),
        },
        "negatives_kept": dict(zip(manifest.tasks, manifest.negatives_kept, strict=True)),
        **{name: counts[name] for name in ("skipped", "noticed")},
        "catalogue_items_unknown": counts["catalogue items that the release lacks"],
        **cost,
    }
