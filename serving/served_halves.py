"""The two halves that an export writes: in the precision that was asked for, and fused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from foundation.errors import DataError
from serving.fuse import Kernels, fuse
from serving.parity import INT8_TOLERANCE, TOLERANCE
from serving.quantise import QuantisedLinear, quantise_halves
from serving.split import Halves

Precision = Literal["float32", "int8"]


@dataclass(frozen=True)
class Form:
    """How the halves of a split ranker are served.

    Attributes:
        rows: of the catalogue's rows on the candidate side: int8 takes a quarter of the memory.
        linears: of the linear layers that fused operators compute: int8 rounds what they read, row by row, and their
            weights (`serving.quantise`).
        fused: fused operators where there are any.
    """

    rows: Precision = "float32"
    linears: Precision = "float32"
    fused: bool = True

    @property
    def tolerance(self) -> float:
        """Of the parity gate."""
        return INT8_TOLERANCE if self.linears == "int8" else TOLERANCE


class ServedHalves(NamedTuple):
    """What is exported, and what it is held to."""

    halves: Halves
    kernels: Kernels
    reference: Halves | None
    """The same int8 by plain operators; None: all is float32, and held to the unsplit ranker."""


def served_halves(halves: Halves, form: Form) -> ServedHalves:
    """Quantise and fuse `halves`, which are used up.

    Raises:
        DataError: int8 linear layers were asked for, and there are none, or none that a fused operator computes.
    """
    reference = None
    if "int8" in (form.rows, form.linears):
        reference = quantise_halves(halves, rows=form.rows == "int8", linears=form.linears == "int8")
        if form.linears == "int8" and not _quantised_linears(reference):
            raise DataError("linears is int8; this ranker has no linear layer that has an int8 form")
        halves = copy.deepcopy(reference)
    kernels = fuse(halves) if form.fused else Kernels(not_fused=_unasked(halves))
    if left := _quantised_linears(halves):
        reasons = "; ".join(f"{part}: {reason}" for part, reason in kernels.not_fused.items())
        raise DataError(
            f"linears is int8, which fused operators alone compute, and {left[0]} is in none ({reasons})"
        )
    return ServedHalves(halves, kernels, reference)


def _quantised_linears(halves: Halves) -> list[str]:
    both = nn.ModuleDict({"profile": halves.profile, "candidate": halves.candidate})
    return [name for name, module in both.named_modules() if isinstance(module, QuantisedLinear)]


def _unasked(halves: Halves) -> dict[str, str]:
    return dict.fromkeys(halves._fields, "exported with --no-fused")
