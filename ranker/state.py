"""The one value that crosses from the profile half of the ranker to the candidate half.

Shapes: B requests, D_profile profile vector width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ProfileState(NamedTuple):
    """What the ranker knows of each request once its profile is encoded, before any candidate is seen.

    It is computed once per request and shared by all of the request's candidates. Serving cuts the training
    graph here: everything before it is the profile graph, everything after it is the candidate graph.
    """

    vector: Tensor
    """`[B, D_profile]` float: one vector per request."""
