"""Why a part of the model runs its exported graph instead of a fused operator."""

from __future__ import annotations


class NoFusedForm(ValueError):
    """This part, configured so, is none that a fused operator computes; the message says why."""
