"""A shallower release from a deeper one: `python -m foundation.truncate --release DIR --layers K --out DIR`.

The first K blocks under the same final norm, so that they can be exported and served without the blocks above.
They rank well where the deeper model was trained with layer-wise supervision (`--layer-weight`). Auxiliary heads
read the last layer, and are left out. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from foundation.errors import DataError, run_command
from foundation.model import FoundationModel
from foundation.release import load_release, save_release
from foundation.truncation import truncated, truncated_state


@dataclass(frozen=True)
class TruncateConfig:
    """Writes a release of the first layers of another one.

    Attributes:
        release: folder of a foundation release.
        layers: blocks to keep.
        out: folder of the new release; must not be there.
    """

    release: Path
    layers: int
    out: Path


def truncate(config: TruncateConfig) -> dict[str, Any]:
    """Writes the shallower release.

    Returns:
        The JSON document of the last line: release, layers, version.

    Raises:
        DataError: there are not so many layers, the release mixes its layers, its decoder is another library's, or
            `out` is there already.
    """
    deep = load_release(config.release)
    sizes, tower = deep.model.config, deep.model.item_tower
    if sizes.foreign.adapter:
        raise DataError(
            f"{config.release}: its decoder is {sizes.foreign.adapter}'s, whose layers can't be cut here"
        )
    if sizes.aggregation.layers == "mix":
        raise DataError(
            f"{config.release}: mixes all its layers (aggregation.layers); it has no shallower part"
        )
    try:
        sizes = replace(sizes, decoder=truncated(sizes.decoder, config.layers))
    except ValueError as error:
        raise DataError(f"--layers {config.layers}: {error}") from None
    shallow = FoundationModel(
        sizes,
        deep.tokenizer.num_facet_rows,
        tower.feature_embedding.num_embeddings,
        tower.facts(),
        deep.tokenizer.age_column,
    )
    shallow.load_state_dict(truncated_state(deep.model.state_dict(), config.layers))
    manifest = save_release(config.out, shallow, deep.tokenizer, deep.manifest.trained_on, {})
    return {"release": str(config.out), "layers": config.layers, "version": manifest.version}


def main() -> None:
    """The command."""
    print(json.dumps(truncate(tyro.cli(TruncateConfig, prog="python -m foundation.truncate"))))


if __name__ == "__main__":
    run_command(main)
