"""`marquee::pool_bags`: registration, and the function that calls it.

Shapes: R rows, W id columns, F features, E width of a feature's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.kernels.extension import load_extension

load_extension()

_NAME = "marquee::pool_bags"


def pool_bags(
    ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], means: Sequence[bool], least: int
) -> Tensor:
    """Embeddings of each row's ids, summed or averaged feature by feature, in one pass over all features.

    For inference: backward through it raises.

    Args:
        ids: `[R, W]` int64, contiguous; an id below `least` is no value.
        tables: F times `[rows, E]` float32, contiguous.
        columns: how many columns of `ids` each feature has; together W.
        means: whether a feature is averaged over its values; else it is summed.
        least: of the ids that are values.

    Returns:
        `[R, ΣE]`, features side by side; zeros where a feature has no value.

    Raises:
        ValueError: if a shape, a stride or an id is wrong (on a GPU ids aren't looked at).
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.pool_bags(ids, list(tables), list(columns), list(means), least)


def _fake(ids: Tensor, tables: Sequence[Tensor], columns: list[int], means: list[bool], least: int) -> Tensor:
    return tables[0].new_empty(ids.shape[0], sum(table.shape[1] for table in tables))


def _plain(
    ids: Tensor, tables: Sequence[Tensor], columns: list[int], means: list[bool], least: int
) -> Tensor:
    pooled = []
    for bag, table, is_mean in zip(ids.split(list(columns), dim=1), tables, means, strict=True):
        present = bag >= least
        total = (table[bag.clamp(min=least)] * present.unsqueeze(-1)).sum(1)
        pooled.append(total / present.sum(1, keepdim=True).clamp(min=1) if is_mean else total)
    return torch.cat(pooled, dim=1)


torch.library.register_fake(_NAME, _fake)
torch.library.register_kernel(_NAME, "cuda", _plain)  # nothing to gain from a kernel: a few microseconds
