"""Cross entropy of softmax(queries @ keys.T) in chunks of tokens: nothing of size tokens x classes is kept.

Letters: M tokens, J classes that compete, D width, P (token, class, weight) pairs.

A chunk's logits are exponentiated in place, and never divided by their sums: both gradients are matrix products
over the raw exponentials, whose other operand [chunk, D] is scaled instead. So the large array is written once
and read three times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of a chunk, in numbers: 2 MB, so that the passes over them run in cache.
LOGITS_PER_CHUNK = 1 << 19
# exp() of twice this is far inside float32's range: no shift is needed where no logit exceeds it.
SAFE_BOUND = 40.0


class _Chunk(NamedTuple):
    """exp(logits - shift) of a chunk of tokens and their sums."""

    exps: Tensor  # [chunk, J]
    total: Tensor  # [chunk, 1], sums of exps
    shift: Tensor | float  # [chunk, 1], or 0 where logits are bounded


def _exponentials(q: Tensor, keys_JD: Tensor, buffer: Tensor, bounded: bool) -> _Chunk:
    logits = torch.mm(q, keys_JD.T, out=buffer[: q.shape[0]])
    if bounded:
        exps = logits.exp_()
        return _Chunk(exps, exps.sum(dim=1, keepdim=True), 0.0)
    shift = logits.amax(dim=1, keepdim=True)
    exps = logits.sub_(shift).exp_()
    return _Chunk(exps, exps.sum(dim=1, keepdim=True), shift)


class _LogPartition(torch.autograd.Function):
    """Sum over m of weight_m * logsumexp_j(q_m . k_j), differentiable once in queries and keys."""

    @staticmethod
    def forward(ctx, queries_MD: Tensor, keys_JD: Tensor, weights_M: Tensor, bounded: bool) -> Tensor:
        num_tokens, num_classes = queries_MD.shape[0], keys_JD.shape[0]
        rows = max(1, min(num_tokens, LOGITS_PER_CHUNK // max(1, num_classes)))
        needs_gradient = any(ctx.needs_input_grad)
        partition = queries_MD.new_zeros((), dtype=torch.float64)
        buffer = queries_MD.new_empty(rows, num_classes)
        grad_queries_MD = torch.empty_like(queries_MD) if needs_gradient else None
        grad_keys_JD = torch.zeros_like(keys_JD) if needs_gradient else None
        for first in range(0, num_tokens, rows):
            q, weight = queries_MD[first : first + rows], weights_M[first : first + rows, None]
            exps, total, shift = _exponentials(q, keys_JD, buffer, bounded)
            partition += ((total.log() + shift) * weight).sum(dtype=torch.float64)
            if grad_queries_MD is not None and grad_keys_JD is not None:
                scale = weight / total
                grad_q = torch.mm(exps, keys_JD, out=grad_queries_MD[first : first + rows])
                grad_q.mul_(scale)
                grad_keys_JD.addmm_(exps.T, q * scale)
        ctx.save_for_backward(grad_queries_MD, grad_keys_JD)
        return partition.to(queries_MD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad_queries_MD, grad_keys_JD = ctx.saved_tensors
        return grad_queries_MD * grad_loss, grad_keys_JD * grad_loss, None, None


def log_partition(
    queries_MD: Tensor, keys_JD: Tensor, weights_M: Tensor, bound: float | None = None
) -> Tensor:
    """Sum over m of weight_m * logsumexp_j(q_m . k_j).

    Args:
        queries_MD: one query per token; any scale (a temperature) is already in it.
        keys_JD: one key per class.
        weights_M: of the tokens, the queries' dtype; no gradient reaches them.
        bound: no logit's absolute value exceeds it (1 / temperature for cosines); at most 40, else it is not
            used. Saves two passes. None: no bound is known.

    Returns:
        A scalar; 0 for no tokens. Differentiable once.
    """
    bounded = bound is not None and bound <= SAFE_BOUND
    return _LogPartition.apply(queries_MD, keys_JD, weights_M, bounded)


def linear_cross_entropy(
    queries_MD: Tensor,
    keys_JD: Tensor,
    targets_M: Tensor,
    weights_M: Tensor | None = None,
    bound: float | None = None,
) -> Tensor:
    """Summed cross entropy of softmax(queries @ keys.T): F.cross_entropy(..., reduction="sum"), in chunks.

    Args:
        queries_MD, keys_JD, bound: as in `log_partition`.
        targets_M: int64 in [0, J).
        weights_M: factor of each token's loss; None: 1.

    Returns:
        The scalar sum; 0 for no tokens. Differentiable once, in queries and keys.
    """
    weights_M = queries_MD.new_ones(queries_MD.shape[0]) if weights_M is None else weights_M
    target_logits_M = (queries_MD * keys_JD.index_select(0, targets_M)).sum(dim=1)
    return log_partition(queries_MD, keys_JD, weights_M, bound) - (target_logits_M * weights_M).sum()


def soft_cross_entropy(
    queries_MD: Tensor,
    keys_JD: Tensor,
    token_P: Tensor,
    class_P: Tensor,
    weight_P: Tensor,
    bound: float | None = None,
) -> Tensor:
    """Sum over pairs of -weight * log softmax(queries @ keys.T)[token, class]: several weighted targets a token.

    Args:
        queries_MD, keys_JD, bound: as in `log_partition`.
        token_P: int64 in [0, M), in any order; a token may come any number of times, or never.
        class_P: int64 in [0, J).
        weight_P: at least 0.

    Returns:
        The scalar sum; 0 for no pairs. Differentiable once, in queries and keys.
    """
    num_tokens = queries_MD.shape[0]
    # Sum of w q_m . k_y over pairs = sum over m of q_m . (sum of w k_y): one bag per token, not a row per pair.
    order = torch.argsort(token_P, stable=True)
    counts_M = torch.bincount(token_P, minlength=num_tokens)
    offsets_M = counts_M.cumsum(0) - counts_M
    targets_MD = torch.nn.functional.embedding_bag(
        class_P[order], keys_JD, offsets_M, mode="sum", per_sample_weights=weight_P[order]
    )
    weights_M = weight_P.new_zeros(num_tokens).index_add(0, token_P, weight_P)
    return log_partition(queries_MD, keys_JD, weights_M, bound) - (queries_MD * targets_MD).sum()
