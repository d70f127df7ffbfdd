"""What a folder of request rows says about itself: `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from foundation.errors import DataError
from foundation.manifest import TrainingCut
from ranker.rows.parquet import Widths

FORMAT = 1
MANIFEST = "manifest.json"
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class ShardRecord:
    """One Parquet file.

    Attributes:
        file: its path within the folder.
        row_groups: requests of each of its row groups, in their order.
        sha256: of its bytes (hex).
    """

    file: str
    row_groups: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class ReleaseOrigin:
    """The foundation release whose vocabularies looked the rows up."""

    version: str
    vocabulary_hash: str
    cut: TrainingCut


@dataclass(frozen=True)
class RowsManifest:
    """All that is known of rows without reading them.

    Attributes:
        format: of the folder, see `FORMAT`.
        release: whose vocabularies the rows were made with.
        data_hash: of the dataset (`foundation.run_record.data_hash`) and of its logged requests.
        tasks: names of the N tasks, in the labels' order.
        widths: of the lists.
        negatives_kept: by task, the share of negatives that are among the candidates; 1 where none was left out.
        draws: shards of each draw of the training requests.
        validation, test: their shards.
        settings: what the job was told, as plain values.
        counts: what was read, written, skipped and noticed, by part or policy.
        cost: seconds, and seconds and bytes per million log events.
    """

    format: int
    release: ReleaseOrigin
    data_hash: str
    tasks: tuple[str, ...]
    widths: Widths
    negatives_kept: tuple[float, ...]
    draws: tuple[tuple[ShardRecord, ...], ...]
    validation: tuple[ShardRecord, ...]
    test: tuple[ShardRecord, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> RowsManifest:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or of another format.
            KeyError, TypeError: a field is missing or unknown.
        """
        plain: dict[str, Any] = json.loads(text)
        if plain["format"] != FORMAT:
            raise ValueError(f"format is {plain['format']!r}; this code reads {FORMAT}; make the rows anew")
        release = plain.pop("release")
        return RowsManifest(
            **{
                **plain,
                "release": ReleaseOrigin(**{**release, "cut": TrainingCut(**release["cut"])}),
                "tasks": tuple(plain["tasks"]),
                "widths": Widths(**plain["widths"]),
                "negatives_kept": tuple(plain["negatives_kept"]),
                "draws": tuple(_shards(draw) for draw in plain["draws"]),
                "validation": _shards(plain["validation"]),
                "test": _shards(plain["test"]),
            }
        )

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of what training reads, and of nothing that tells how it was made."""
        plain = asdict(self)
        for told in ("settings", "counts", "cost"):
            del plain[told]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_rows_manifest(folder: Path) -> RowsManifest:
    """The manifest of a folder of rows.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return RowsManifest.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; make rows with python -m ranker.features") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest of request rows: {error}") from None


def _shards(plain: list[dict[str, Any]]) -> tuple[ShardRecord, ...]:
    return tuple(ShardRecord(each["file"], tuple(each["row_groups"]), each["sha256"]) for each in plain)
