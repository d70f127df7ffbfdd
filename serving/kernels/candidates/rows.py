"""Item rows in int8: a quarter of the bytes, a scale for each row."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX = 127


def quantise_table(table: Tensor) -> tuple[Tensor, Tensor]:
    """`[I, W]` float32 to int8 `[I, W]` and scales `[I]`: row `i` is `int8[i] * scales[i]`, scaled by `max|row| / 127`.

    Raises:
        ValueError: if a value isn't finite.
    """
    if not table.isfinite().all():
        raise ValueError("an item's row has a NaN or an infinity; int8 has neither")
    scales_I = table.abs().amax(1) / _MAX
    rows_IW = torch.where(scales_I[:, None] > 0, table / scales_I[:, None], 0.0).round().clamp(-_MAX, _MAX)
    return rows_IW.to(torch.int8), scales_I
