"""Marquee as it is served with int8 rows and int8 linear layers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.baselines.fused import Fused
from serving.served_halves import Form


def variant(threads: int, folder: Path) -> Fused:
    """See `benchmarks.baselines.variants`."""
    return Fused(threads, folder, Form(rows="int8", linears="int8"))
