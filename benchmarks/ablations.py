"""What each kind of input is worth: `python -m benchmarks.ablations`, on MovieLens-1M unless told otherwise.

    all          all inputs
    no-time      without the request's time: neither hour, date nor gap
    no-ratings   without ratings
    ids          ids and order only, which is what published models have

Each row is the same model with the same settings on a dataset folder that differs in its schema alone, pre-trained and
evaluated by the commands printed. Rows can be run one at a time, in processes of their own; a row that was
interrupted goes on, one that is finished is reused. The last line is one JSON document.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.ablated_data import ROWS, derive, inputs_of
from benchmarks.environment import stamp
from benchmarks.published import PUBLISHED
from benchmarks.report import environment_lines
from benchmarks.stations import StationFailed, Stations
from foundation.atomic import atomic_file
from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.home import home
from foundation.protocol import ProtocolName
from foundation.run_record import data_hash
from foundation.schema import load_schema
from foundation.sources.movielens import write_movielens

RowName = Literal["all", "no-time", "no-ratings", "ids"]
Document = dict[str, Any]
Run = Callable[..., Document]
"""Runs a command: (title, module, *arguments) to the JSON document it ends with, as `Stations.run`."""

RESULT = "result.json"
METRICS = ("hr@10", "ndcg@10", "mrr")


@dataclass(frozen=True)
class AblationsConfig:
    """Pre-trains and evaluates a model per row.

    Attributes:
        out: folder of all rows, each with its data, run and result; default: $MARQUEE_HOME/runs/ablations.
        data: dataset folder; without it MovieLens-1M, fetched where it isn't yet.
        rows: which to run, or to report.
        report_only: run nothing; report the rows that are finished.
        protocol: what is held out of training, see `foundation.protocol`.
        epochs, seed, learning_rate, tokens_per_batch: as in foundation.pretrain, and the same for every row.
        width, layers, heads, dropout, block: of the decoder.
        more: further arguments for foundation.pretrain in one string, as --more="--window.window 100". No blocks of
            kind "hstu": they read times, which some rows go without.
    """

    out: Path | None = None
    data: Path | None = None
    rows: tuple[RowName, ...] = ("all", "no-time", "no-ratings", "ids")
    report_only: bool = False
    protocol: ProtocolName = "last"
    epochs: int = 40
    seed: int = 0
    learning_rate: float = 3e-3
    tokens_per_batch: int = 3_000
    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    block: Literal["plain", "gated"] = "plain"
    more: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"--rows is empty; it must name some of {', '.join(ROWS)}")
        if "hstu" in self.more:
            raise DataError(f"--more is {self.more!r}; blocks must be plain or gated, for hstu reads times")

    @property
    def folder(self) -> Path:
        """Of all rows."""
        return self.out or home() / "runs" / "ablations"

    def arguments(self) -> list[str]:
        """Of foundation.pretrain, apart from its folders: what every row has in common."""
        named = {
            "protocol": self.protocol,
            "epochs": self.epochs,
            "seed": self.seed,
            "learning-rate": self.learning_rate,
            "tokens-per-batch": self.tokens_per_batch,
            "decoder.width": self.width,
            "decoder.num-layers": self.layers,
            "decoder.num-heads": self.heads,
            "decoder.dropout": self.dropout,
            "decoder.block": self.block,
        }
        pairs = [each for name, value in named.items() for each in (f"--{name}", str(value))]
        return [*pairs, *shlex.split(self.more)]


def measure(config: AblationsConfig, run: Run, say: Callable[[str], object]) -> Document:
    """Runs the rows that aren't finished; returns the closing document.

    Raises:
        DataError: wrong data, or a row was finished with other settings or data.
        StationFailed: a command failed; it has said why.
    """
    whole = _whole(config, say)
    environment = stamp()
    say("\n".join(environment_lines(environment)))
    rows = {name: found for name in config.rows if (found := _row(config, name, whole, run)) is not None}
    return {
        "benchmark": "ablations",
        "data": str(whole.folder),
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()},
        "arguments": shlex.join(config.arguments()),
        "rows": rows,
        "missing": [name for name in config.rows if name not in rows],
        "published": [row.to_json() for row in PUBLISHED] if whole.schema.name == "movielens-1m" else [],
        "environment": environment,
    }


def _whole(config: AblationsConfig, say: Callable[[str], object]) -> Dataset:
    if config.data is not None:
        return load_dataset(config.data)
    return write_movielens(home() / "data" / "movielens-1m", "1m", say)


def _row(config: AblationsConfig, name: RowName, whole: Dataset, run: Run) -> Document | None:
    """The result of one row, computed where it isn't yet; None where it may not be."""
    folder = config.folder / name
    started_with = {"arguments": config.arguments(), "data": data_hash(whole)}
    path = folder / RESULT
    if not path.exists():
        if config.report_only:
            return None
        result = started_with | _run_row(config, name, whole, run)
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
    result = json.loads(path.read_text(encoding="utf-8"))
    for key, value in started_with.items():
        if result[key] != value:
            raise DataError(
                f"{path}: {key} of this finished row is {result[key]}, now {value}; set it back, or choose "
                "another --out"
            )
    return {key: value for key, value in result.items() if key not in started_with}


def _run_row(config: AblationsConfig, name: RowName, whole: Dataset, run: Run) -> Document:
    title, folder = ROWS[name].title, config.folder / name
    data = derive(whole, name, folder / "data")
    shared = ("--data", data)
    # Before the training: afterwards the load average would be our own.
    environment = stamp()
    trained = run(
        f"pre-train, {title}", "foundation.pretrain", *shared, "--out", folder / "run", *config.arguments()
    )
    tested = run(
        f"evaluate, {title}", "foundation.evaluate", *shared, "--release", trained["release"], "--json"
    )
    named = [key for metric in METRICS for key in (metric, f"{metric}_ci95", f"popularity_{metric}")]
    return {
        "title": title,
        "inputs": inputs_of(load_schema(data / "schema.toml")),
        **{key: tested[key] for key in named},
        "loss": tested["loss"],
        "profiles": tested["profiles"],
        "items": tested["items"],
        "protocol": tested["protocol"],
        "version": tested["version"],
        "training": {key: value for key, value in trained.items() if key != "release"},
        "environment": environment,
    }


def table(report: Document) -> str:
    """The rows beside published ones, for people."""
    lines = [f"\n{'':34}{'HR@10':>8}{'':17}{'NDCG@10':>8}{'':17}{'MRR':>8}{'training s':>12}"]
    for row in report["rows"].values():
        cells = "".join(f"{row[name]:8.4f}{_interval(row[f'{name}_ci95']):>17}" for name in METRICS[:2])
        lines.append(f"{row['title']:34}{cells}{row['mrr']:8.4f}{row['training']['training_s']:12,.0f}")
    for name in report["missing"]:
        lines.append(f"{ROWS[name].title:34} not finished: --rows {name}")
    first = next(iter(report["rows"].values()), None)
    if first is not None:
        popular = "".join(f"{first[f'popularity_{name}']:8.4f}{'':17}" for name in METRICS[:2])
        lines += [f"{'popularity':34}{popular}{first['popularity_mrr']:8.4f}", "", first["protocol"]]
        lines.append(f"{first['profiles']:,} profiles; 95 % intervals over profiles")
    if report["published"]:
        lines += ["", "published, not run here; the first to be held against ids and order only:"]
    for row in report["published"]:
        lines.append(
            f"{row['model']:34}{row['hr@10']:8.4f}{'':17}{row['ndcg@10']:8.4f}   {row['source']}: "
            f"{row['num_items'] or 'unstated number of'} items, {row['tie_order']}; {row['validation']}"
        )
    return "\n".join(lines)


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"


def main() -> None:
    """The command."""
    config = tyro.cli(AblationsConfig, prog="python -m benchmarks.ablations")
    stations = Stations()
    try:
        report = measure(config, stations.run, stations.say)
    except StationFailed as failure:
        print(f"error: {failure}; the command above says why", file=sys.stderr)
        raise SystemExit(1) from None
    stations.say(table(report))
    print(json.dumps(report))


if __name__ == "__main__":
    run_command(main)
