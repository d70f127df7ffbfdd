"""A shallower decoder out of a deeper one: its first blocks, under the same final norm."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from foundation.decoder import DecoderConfig

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def truncated(config: DecoderConfig, num_layers: int) -> DecoderConfig:
    """The same decoder with its first `num_layers` blocks only.

    Its output is `Decoder.layers(...)[num_layers - 1]` of the whole one.

    Raises:
        ValueError: if there are not as many.
    """
    if not 1 <= num_layers <= config.num_layers:
        raise ValueError(f"num_layers must be in [1, {config.num_layers}], got {num_layers}")
    return replace(config, num_layers=num_layers)


def truncated_state(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The state of the first `num_layers` blocks and of all that is no block.

    Args:
        state: of a decoder, or of a model that holds one: names end in `blocks.<layer>.<name>`, whatever is before.
        num_layers: blocks to keep.
    """

    def is_kept(name: str) -> bool:
        block = _BLOCK.search(name)
        return block is None or int(block[1]) < num_layers

    return {name: value for name, value in state.items() if is_kept(name)}
