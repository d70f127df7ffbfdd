"""Next-item objectives: softmax over the whole catalogue, never holding tokens x items, or over a sample.

Letters: T packed tokens, M tokens with a known target, I item rows, J items that compete, D model width,
N sampled negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foundation.model import unit
from foundation.vocabulary import FIRST_KNOWN

# 283 tokens of a 3,706-item catalogue, 4 MB of logits: small enough to stay in cache while several passes
# over them run, large enough for an efficient matrix product.
LOGITS_PER_CHUNK = 1 << 20


@dataclass(frozen=True)
class ObjectiveConfig:
    """How the next item is learned.

    Attributes:
        softmax: "full" over the whole catalogue, or "sampled" over `num_negatives` uniform negatives.
        num_negatives: negatives drawn per step of the sampled softmax, shared by the step's tokens.
        masked_share: of the known input items that are shown as out of vocabulary in training.
    """

    softmax: Literal["full", "sampled"] = "full"
    num_negatives: int = 512
    masked_share: float = 0.01

    def __post_init__(self) -> None:
        if self.softmax not in ("full", "sampled"):
            raise ValueError(f"objective.softmax is {self.softmax!r}; it must be 'full' or 'sampled'")
        if self.num_negatives < 1:
            raise ValueError(f"objective.num_negatives is {self.num_negatives}; it must be at least 1")
        if not 0 <= self.masked_share < 1:
            raise ValueError(f"objective.masked_share is {self.masked_share}; it must be in [0, 1)")


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over m of logsumexp_j(q_m · k_j) - q_m · k_target(m), in chunks of tokens.

    Gradients are made in the forward pass, while a chunk's probabilities are at hand, so a backward pass
    costs two multiplications and nothing of size tokens x items is kept.
    """

    @staticmethod
    def forward(ctx, queries_MD: Tensor, keys_JD: Tensor, targets_M: Tensor) -> Tensor:
        num_tokens, num_items = queries_MD.shape[0], keys_JD.shape[0]
        rows = max(1, min(num_tokens, LOGITS_PER_CHUNK // num_items))
        needs_gradient = any(ctx.needs_input_grad)
        loss = queries_MD.new_zeros((), dtype=torch.float64)
        buffer = queries_MD.new_empty(rows, num_items)
        grad_queries_MD = torch.empty_like(queries_MD) if needs_gradient else None
        grad_keys_JD = torch.zeros_like(keys_JD) if needs_gradient else None
        for first in range(0, num_tokens, rows):
            q = queries_MD[first : first + rows]
            target = targets_M[first : first + rows, None]
            logits = torch.mm(q, keys_JD.T, out=buffer[: q.shape[0]])
            highest = logits.amax(dim=1, keepdim=True)
            target_logit = logits.gather(1, target) - highest
            probs = logits.sub_(highest).exp_()
            total = probs.sum(dim=1, keepdim=True)
            loss += (total.log() - target_logit).sum(dtype=torch.float64)
            if grad_queries_MD is not None and grad_keys_JD is not None:
                probs.div_(total)
                probs.scatter_add_(1, target, probs.new_full(target.shape, -1.0))
                torch.mm(probs, keys_JD, out=grad_queries_MD[first : first + rows])
                grad_keys_JD.addmm_(probs.T, q)
        ctx.save_for_backward(grad_queries_MD, grad_keys_JD)
        return loss.to(queries_MD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        grad_queries_MD, grad_keys_JD = ctx.saved_tensors
        return grad_queries_MD * grad_loss, grad_keys_JD * grad_loss, None


def linear_cross_entropy(queries_MD: Tensor, keys_JD: Tensor, targets_M: Tensor) -> Tensor:
    """Summed cross entropy of softmax(queries @ keys.T): F.cross_entropy(..., reduction="sum"), in chunks.

    Args:
        queries_MD: one query per token; any scale (a temperature) is already in it.
        keys_JD: one key per class.
        targets_M: int64 in [0, J).

    Returns:
        The scalar sum; 0 for no tokens. Differentiable once, in queries and keys.
    """
    return _LinearCrossEntropy.apply(queries_MD, keys_JD, targets_M)


def next_item_loss(
    hidden_TD: Tensor, item_vectors_ID: Tensor, targets_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Full softmax over the catalogue of cosine(hidden, item) / temperature.

    Rows 0 (out of vocabulary) and 1 (start) never compete; tokens whose target is not a known item (row < 2)
    are left out of sum and count.

    Args:
        hidden_TD: decoder output.
        item_vectors_ID: item tower output, rows 0 and 1 included.
        targets_T: int64 item rows; anything below 2 is no target.
        temperature: of the softmax, in cosine units; 0.05 in HSTU (arXiv 2402.17152).

    Returns:
        (sum of the losses, number of tokens in it), both scalars.
    """
    hidden_MD, targets_M = _with_target(hidden_TD, targets_T)
    queries_MD = unit(hidden_MD) / temperature
    keys_JD = unit(item_vectors_ID[FIRST_KNOWN:])
    return linear_cross_entropy(queries_MD, keys_JD, targets_M - FIRST_KNOWN), _count(targets_M)


def sampled_next_item_loss(
    hidden_TD: Tensor, item_vectors_ID: Tensor, targets_T: Tensor, temperature: float, negatives_N: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of `next_item_loss` with the softmax taken over the target and the given negatives alone.

    A negative that is a token's own target is masked for that token, so that no item is its own negative.

    Args:
        hidden_TD, item_vectors_ID, targets_T, temperature: as in `next_item_loss`.
        negatives_N: int64 item rows (see `uniform_negatives`), shared by all tokens.

    Returns:
        (sum of the losses, number of tokens in it), both scalars.
    """
    hidden_MD, targets_M = _with_target(hidden_TD, targets_T)
    queries_MD = unit(hidden_MD) / temperature
    vectors_ID = unit(item_vectors_ID)
    positive_M = (queries_MD * vectors_ID.index_select(0, targets_M)).sum(dim=-1)
    negative_MN = queries_MD @ vectors_ID.index_select(0, negatives_N).T
    negative_MN = negative_MN.masked_fill(targets_M[:, None] == negatives_N, float("-inf"))
    total_M = torch.logsumexp(torch.cat([positive_M[:, None], negative_MN], dim=1), dim=1)
    return (total_M - positive_M).sum(), _count(targets_M)


def uniform_negatives(num_rows: int, num_negatives: int, generator: torch.Generator) -> Tensor:
    """`num_negatives` known item rows, int64, uniform with replacement over [2, num_rows)."""
    return torch.randint(FIRST_KNOWN, num_rows, (num_negatives,), generator=generator)


def _with_target(hidden_TD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    kept_M = torch.nonzero(targets_T >= FIRST_KNOWN).squeeze(1)
    return hidden_TD.index_select(0, kept_M), targets_T.index_select(0, kept_M)


def _count(targets_M: Tensor) -> Tensor:
    return torch.tensor(targets_M.shape[0], dtype=torch.int64, device=targets_M.device)
