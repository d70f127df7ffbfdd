"""`marquee::pool_bags`, `embed_tokens` and `profile_vector`: registration, and the functions that call them.

Shapes: R rows, W id columns, F features, E width of a feature's embedding; T tokens, D decoder width, I items,
B requests, X width of the dense features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.kernels.extension import load_extension

load_extension()

_NAME = "marquee::pool_bags"
_TOKENS, _VECTOR = "marquee::embed_tokens", "marquee::profile_vector"


def pool_bags(
    ids: Tensor,
    tables: Sequence[Tensor],
    columns: Sequence[int],
    means: Sequence[bool],
    least: int,
    beside: Tensor | None = None,
) -> Tensor:
    """Embeddings of each row's ids, summed or averaged feature by feature, in one pass over all features.

    For inference: backward through it raises.

    Args:
        ids: `[R, W]` int64, contiguous; an id below `least` is no value.
        tables: F times `[rows, E]` float32, contiguous.
        columns: how many columns of `ids` each feature has; together W.
        means: whether a feature is averaged over its values; else it is summed.
        least: of the ids that are values.
        beside: `[R, X]` float32, contiguous, what follows them; None: nothing.

    Returns:
        `[R, ΣE + X]`, features side by side; zeros where a feature has no value.

    Raises:
        ValueError: if a shape, a stride or an id is wrong (on a GPU ids aren't looked at).
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.pool_bags(ids, list(tables), list(columns), list(means), least, beside)


def _fake(
    ids: Tensor, tables: Sequence[Tensor], columns: list[int], means: list[bool], least: int,
    beside: Tensor | None = None,
) -> Tensor:  # fmt: skip
    width = sum(table.shape[1] for table in tables) + (0 if beside is None else beside.shape[1])
    return tables[0].new_empty(ids.shape[0], width)


def _plain(
    ids: Tensor, tables: Sequence[Tensor], columns: list[int], means: list[bool], least: int,
    beside: Tensor | None = None,
) -> Tensor:  # fmt: skip
    pooled = []
    for bag, table, is_mean in zip(ids.split(list(columns), dim=1), tables, means, strict=True):
        present = bag >= least
        total = (table[bag.clamp(min=least)] * present.unsqueeze(-1)).sum(1)
        pooled.append(total / present.sum(1, keepdim=True).clamp(min=1) if is_mean else total)
    return torch.cat(pooled if beside is None else [*pooled, beside], dim=1)


torch.library.register_fake(_NAME, _fake)
torch.library.register_kernel(_NAME, "cuda", _plain)  # nothing to gain from a kernel: a few microseconds


def embed_tokens(
    facet_ids: Tensor, facets: Tensor, item_ids: Tensor, items: Tensor, last_index: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """What the decoder reads of each token: its facets' embeddings and its item's vector, added up; and whose it is.

    For inference: backward through it raises.

    Args:
        facet_ids: `[T, W]` int64, contiguous, rows of `facets`; 0 is no value.
        facets: `[rows, D]` float32, contiguous.
        item_ids: `[T]` int64, contiguous, rows of `items`.
        items: `[I, D]` float32, contiguous.
        last_index: `[B]` int64, contiguous, each request's last token; a request without one is an error.
        positions: `[T]` int64, contiguous, of each token in its request.

    Returns:
        tokens `[T, D]` and their offsets `[B + 1]`.

    Raises:
        ValueError: if a shape, a stride or an id is wrong (on a GPU ids aren't looked at).
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.embed_tokens(facet_ids, facets, item_ids, items, last_index, positions)


def profile_vector(
    hidden: Tensor,
    least_norm: float,
    ids: Tensor,
    tables: Sequence[Tensor],
    columns: Sequence[int],
    means: Sequence[bool],
    dense: Tensor,
) -> Tensor:
    """`[hidden / max(its length, least_norm) ; pooled ids ; dense]` of each request.

    For inference: backward through it raises.

    Args:
        hidden: `[B, D]` float32, contiguous.
        least_norm: what a shorter row is divided by.
        ids, tables, columns, means: of B requests, as of `pool_bags`; below 0 there is no value.
        dense: `[B, X]` float32, contiguous.

    Returns:
        `[B, D + ΣE + X]`.

    Raises:
        ValueError: if a shape, a stride or an id is wrong (on a GPU ids aren't looked at).
        TypeError: if a dtype is wrong.
    """
    return torch.ops.marquee.profile_vector(
        hidden, least_norm, ids, list(tables), list(columns), list(means), dense
    )


def _fake_tokens(
    facet_ids: Tensor, facets: Tensor, item_ids: Tensor, items: Tensor, last_index: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = items.new_empty(facet_ids.shape[0], items.shape[1])
    return tokens, last_index.new_empty(last_index.shape[0] + 1)


def _plain_tokens(
    facet_ids: Tensor, facets: Tensor, item_ids: Tensor, items: Tensor, last_index: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = _plain(facet_ids, [facets], [facet_ids.shape[1]], [False], 1) + items[item_ids]
    return tokens, torch.cat((last_index.new_zeros(1), last_index + 1))


def _fake_vector(
    hidden: Tensor, least_norm: float, ids: Tensor, tables: Sequence[Tensor], columns: list[int],
    means: list[bool], dense: Tensor,
) -> Tensor:  # fmt: skip
    pooled = sum(table.shape[1] for table in tables)
    return hidden.new_empty(hidden.shape[0], hidden.shape[1] + pooled + dense.shape[1])


def _plain_vector(
    hidden: Tensor, least_norm: float, ids: Tensor, tables: Sequence[Tensor], columns: list[int],
    means: list[bool], dense: Tensor,
) -> Tensor:  # fmt: skip
    unit = torch.nn.functional.normalize(hidden, dim=-1, eps=least_norm)
    pooled = [_plain(ids, tables, columns, means, 0)] if tables else []
    return torch.cat((unit, *pooled, dense), dim=1)


torch.library.register_fake(_TOKENS, _fake_tokens)
torch.library.register_kernel(_TOKENS, "cuda", _plain_tokens)
torch.library.register_fake(_VECTOR, _fake_vector)
torch.library.register_kernel(_VECTOR, "cuda", _plain_vector)
