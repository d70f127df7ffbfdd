"""The one value that crosses from the profile half of the ranker to the candidate half.

Shapes: B requests, T packed tokens, m crossed layers, H heads, K head width, D_profile profile vector width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from foundation.key_values import KeyValues

Mode = Literal["vector", "crossing"]
"""How candidates are scored: against the profile vector alone, or after crossing the decoder's top layers too."""


class ProfileState(NamedTuple):
    """What the ranker knows of each request once its profile is encoded, before any candidate is seen.

    It is computed once per request and shared by all of the request's candidates. Serving cuts the training
    graph here: everything before it is the profile graph, everything after it is the candidate graph.
    """

    vector: Tensor
    """`[B, D_profile]` float: one vector per request."""
    key_values: KeyValues | None = None
    """Keys and values, m times `[T, H, K]`, of history and request tokens in the decoder's top m layers, jagged with
    offsets `[B + 1]`; None where candidates don't cross."""
