"""`marquee::score_candidates`: registration, and the function that calls it.

Shapes: B requests, C candidates over the batch, I item rows, K dot products, E dot-product width, H first hidden
width, F width of the candidates' features, D of crossed candidates, N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving.kernels.extension import load_extension

load_extension()

_NAME = "marquee::score_candidates"


class ItemTables(NamedTuple):
    """What depends on the item alone, for every row of the catalogue."""

    x: Tensor
    """`[I, H]` float32 or int8: the candidate's share of the first layer, bias included."""
    e: Tensor
    """`[I, E]` of the same dtype: the candidate's side of the dot products."""
    scales: Sequence[Tensor] = ()
    """For int8, each table's scales `[I]` float32; none for float32."""


class Weights(NamedTuple):
    """The layers, packed by `serving.kernels.linear.panels.pack`."""

    dots: Tensor
    """`[K, H]` float32, not packed: the first layer's weights of the dot products."""
    layers: Sequence[Tensor]
    """Packed weights of the features if there are any, and of the crossed candidates if there are any; then packed
    weights and bias of each hidden layer after the first, and of the head."""
    scales: Sequence[Tensor] = ()
    """Of int8 layers; none for float32."""
    num_tasks: int = 1
    """N."""


def score_candidates(
    rows: Tensor,
    offsets: Tensor,
    tables: ItemTables,
    profile: tuple[Tensor, Tensor | None],
    where: tuple[Tensor | None, Tensor | None],
    weights: Weights,
) -> Tensor:
    """Logits of every candidate: `head(relu(… relu(x_c + p_r + Σ_k (e_c · q_rk) w_k + f_c W_f + c_c W_x) …))`.

    For each few candidates all of it is computed in one pass, from the gathered item rows to the logits; what is
    once per request is read in place (IKBO's broadcast inside the kernel; ROO, arXiv 2508.05640), so nothing of size
    `[C, H]` is ever in memory. For inference: backward through it raises.

    Args:
        rows: `[C]` int64, each candidate's item row.
        offsets: `[B + 1]` int64 or int32: request `b` owns candidates `offsets[b]` to `offsets[b + 1]`.
        tables: what is known of the items.
        profile: p `[B, H]`, the profile's share of the first layer, and q `[B, K, E]`, its side of the dot products; or
            `[B, H + K E]`, which has both, and None.
        where: features `[C, F]` and crossed candidates `[C, D]`; None where there are none.
        weights: of all layers.

    Returns:
        `[C, N]`.

    Raises:
        ValueError: if a shape, a stride, an offset or a row is wrong (on a GPU their values aren't looked at).
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.score_candidates(
        rows,
        offsets,
        tables.x,
        tables.e,
        tables.scales,
        *profile,
        weights.dots,
        *where,
        weights.layers,
        weights.scales,
        weights.num_tasks,
    )


def _fake(
    rows: Tensor,
    offsets: Tensor,
    x_table: Tensor,
    e_table: Tensor,
    table_scales: list[Tensor],
    p: Tensor,
    q: Tensor | None,
    dot_weights: Tensor,
    features: Tensor | None,
    crossed: Tensor | None,
    weights: list[Tensor],
    scales: list[Tensor],
    num_tasks: int,
) -> Tensor:
    return p.new_empty(rows.shape[0], num_tasks)


def _cuda(*arguments: Any) -> Tensor:
    # Imported here because the kernel language is installed on development and GPU machines only.
    from serving.kernels.candidates.gpu import score_candidates_gpu  # noqa: PLC0415

    return score_candidates_gpu(*arguments)


torch.library.register_fake(_NAME, _fake)
torch.library.register_kernel(_NAME, "cuda", _cuda)
