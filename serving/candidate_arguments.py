"""What the candidate graph reads: the state that the profile graph returned, the candidates, and where these cross.

Shapes: B requests, C candidates over the batch, m crossed layers.

    vector mode      vector, *CandidateInputs
    crossing mode    vector, *CandidateInputs, *Branches, keys and values of the m layers
"""

from __future__ import annotations

from torch import Tensor

from foundation.branches import branches
from ranker.features.inputs import CandidateInputs, ProfileInputs


def candidate_arguments(
    state: tuple[Tensor, ...], profile: ProfileInputs, candidates: CandidateInputs
) -> tuple[Tensor, ...]:
    """All inputs of the candidate graph, in order.

    Where candidates lie beside their requests' tokens has shapes that depend on data, so it is found here, between
    the two graphs, and not inside one.

    Args:
        state: from the profile graph: the vector `[B, D_profile]`, then keys and values of m layers; m is 0 in
            vector mode.
        profile: what the profile graph read.
        candidates: of the same requests.
    """
    vector, *key_values = state
    if not key_values:
        return (vector, *candidates)
    where = branches(profile.token_offsets, candidates.offsets)
    return (vector, *candidates, *where.layout, where.key_index, where.lengths, *key_values)
