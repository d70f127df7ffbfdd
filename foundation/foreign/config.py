"""Which foreign decoder a foundation model has, and how it is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from foundation.errors import DataError
from foundation.foreign.protocol import ForeignDecoder

GROUP = "marquee.decoders"
"""The entry points that offer foreign decoders."""
_WEIGHTS = "weights"


@dataclass(frozen=True)
class ForeignConfig:
    """A decoder from another library in the place of ours.

    Attributes:
        adapter: entry point of the group `marquee.decoders`; `hugging_face` comes along. Empty: our own decoder.
        settings: what the adapter builds from: a JSON object, or the path of a file that holds one. For
            `hugging_face` it is the model's own config.json.
        weights: folder that the adapter takes initial weights from; only read as pre-training starts.
    """

    adapter: str = ""
    settings: str = "{}"
    weights: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        text = self.settings
        if not text.lstrip().startswith("{"):
            try:
                text = Path(text).read_text(encoding="utf-8")
            except OSError as error:
                raise DataError(
                    f"foreign.settings: {text!r} is no JSON object, and no file: {error}"
                ) from None
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"foreign.settings: {self.settings!r}: not JSON: {error}") from None
        if not isinstance(plain, dict):
            raise DataError(f"foreign.settings: {self.settings!r}: must hold a JSON object")
        object.__setattr__(self, "settings", json.dumps(plain, sort_keys=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `config.json`; where its first weights came from is not among them."""
        return {"adapter": self.adapter, "settings": json.loads(self.settings)}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> ForeignConfig:
        """The inverse of `to_json`."""
        return cls(plain["adapter"], json.dumps(plain["settings"]))


def build_foreign(config: ForeignConfig, width: int, num_layers: int) -> ForeignDecoder:
    """The decoder that `config` names.

    Raises:
        DataError: no such adapter is installed, or not what it needs; the decoder has another width or number of
            layers.
    """
    offered = {point.name: point for point in entry_points(group=GROUP)}
    if config.adapter not in offered:
        raise DataError(
            f"foreign.adapter is {config.adapter!r}; installed packages offer {', '.join(sorted(offered)) or 'none'} "
            f"(entry points of the group {GROUP!r})"
        )
    settings: dict[str, Any] = json.loads(config.settings)
    if config.weights:
        settings[_WEIGHTS] = config.weights
    try:
        build: Callable[[dict[str, Any], int, int], ForeignDecoder] = offered[config.adapter].load()
    except ImportError as error:
        raise DataError(
            f"foreign.adapter {config.adapter!r} can't be loaded: {error}; install what it needs"
            " (hugging_face: requirements/hugging_face.txt)"
        ) from None
    return build(settings, width, num_layers)


def check_sizes(width: int, num_layers: int, found_width: int, found_layers: int) -> None:
    """Refuses a decoder of other sizes than the foundation model's; for adapters, before they build a large one.

    Raises:
        DataError: names the size and how to set it.
    """
    for name, ours, theirs in (("width", width, found_width), ("num_layers", num_layers, found_layers)):
        if theirs != ours:
            raise DataError(
                f"decoder.{name} is {ours}, and {theirs} by foreign.settings; set --decoder.{name.replace('_', '-')} "
                f"{theirs}, or change the settings"
            )
