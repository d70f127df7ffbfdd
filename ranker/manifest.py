"""What a ranker's folder says about itself: `manifest.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from foundation.manifest import TrainingCut, TrainingData

FORMAT = 3
"""Of the ranker's folder; a reader refuses any other. 3 has the tasks' log rates."""


@dataclass(frozen=True)
class FoundationOrigin:
    """The foundation release that a ranker grew from.

    Attributes:
        version: of the release.
        embedding_space_id: of the release; co-training has moved the ranker's own vectors away from it.
        schema_hash, vocabulary_hash: shared by the release and the ranker.
    """

    version: str
    embedding_space_id: str
    schema_hash: str
    vocabulary_hash: str


@dataclass(frozen=True)
class RankerManifest:
    """What is known of a ranker without its weights.

    Attributes:
        format: of the folder, see `FORMAT`.
        version: sorts by time of creation (UTC), and ends in the first letters of the weights' hash.
        files: SHA-256 (hex) of every other file of the folder, by name.
        foundation: the release it grew from.
        trained_on: data and cut of that release; the ranker's own requests come from behind the same cut.
        metrics: figures of the training run.
    """

    format: int
    version: str
    files: dict[str, str]
    foundation: FoundationOrigin
    trained_on: TrainingData
    metrics: dict[str, float]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> RankerManifest:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or of another format.
            KeyError, TypeError: a field is missing or unknown.
        """
        plain: dict[str, Any] = json.loads(text)
        if plain["format"] != FORMAT:
            raise ValueError(f"format is {plain['format']!r}; this code reads {FORMAT}; co-train again")
        foundation = FoundationOrigin(**plain.pop("foundation"))
        data = plain.pop("trained_on")
        cut = TrainingCut(**data.pop("cut"))
        return RankerManifest(**plain, foundation=foundation, trained_on=TrainingData(**data, cut=cut))
