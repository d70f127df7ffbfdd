"""What co-training minimises: a binary cross-entropy per task, and the decoder's own next-item loss.

Shapes: B requests, C candidates over the batch, T packed tokens, N tasks.

Every loss is a sum, and is divided by how many it is a sum of over all ranks, so that neither the split of a
batch over ranks nor a rank with few labels changes what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from foundation.objectives.softmax import next_item_loss
from ranker.arches.profile_tower import DecoderTower
from ranker.model import Ranker, RankerInputs
from ranker.state import ProfileState
from ranker.training.targets import Targets


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses.

    Attributes:
        next_item_weight: of the next-item loss of the decoder's own tokens, against 1 for each task.
        tokens_per_request: the newest so many tokens of each request enter it, its own token among them; they
            bound its cost, and the newest events are those that the foundation model has not been trained on.
    """

    next_item_weight: float = 0.1
    tokens_per_request: int = 16

    def __post_init__(self) -> None:
        if self.next_item_weight < 0:
            raise ValueError(f"loss.next_item_weight is {self.next_item_weight}; it must be at least 0")
        if self.tokens_per_request < 1:
            raise ValueError(f"loss.tokens_per_request is {self.tokens_per_request}; it must be at least 1")


class LossSums(NamedTuple):
    """Sums of losses and how many each is a sum of: the N tasks, then the next-item loss."""

    sums: Tensor
    """`[N + 1]`."""
    counts: Tensor
    """`[N + 1]` float64, exact integers."""


class RankerWithLoss(nn.Module):
    """A ranker and its losses as one module, which is what `DistributedModelParallel` wraps.

    Args:
        ranker: trained in place.
    """

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, batch: RankerInputs, targets: Targets) -> LossSums:
        """Losses of one rank's share of a batch; the decoder runs once per request, for both."""
        item_vectors = self.ranker.item_vectors()
        encoding = self.ranker.encode(batch.profile, item_vectors)
        logits = self.ranker.score(ProfileState(encoding.vector), batch.candidates, item_vectors)
        sums, counts = task_losses(logits, targets.labels, targets.mask)
        next_item, num_tokens = sums.new_zeros(()), counts.new_zeros(())
        tower = self.ranker.profile_tower
        if isinstance(tower, DecoderTower):
            assert encoding.hidden is not None and item_vectors is not None
            temperature = tower.foundation.config.temperature
            hidden = encoding.hidden.index_select(0, targets.tokens)
            next_item, num_tokens = next_item_loss(
                hidden, item_vectors.vectors, targets.next_item, temperature
            )
        return LossSums(
            torch.cat((sums, next_item[None])), torch.cat((counts, num_tokens[None].to(counts.dtype)))
        )


def task_losses(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Summed binary cross-entropy of each task over its labelled candidates, and their number; `[N]` each.

    Args:
        logits, labels, mask: `[C, N]`.
    """
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return torch.where(mask, losses, 0.0).sum(dim=0), mask.sum(dim=0, dtype=torch.float64)


class GlobalLoss(NamedTuple):
    """The losses of a batch over all ranks."""

    to_backpropagate: Tensor
    """Scalar, of this rank: world_size · Σ_i weight_i · sum_i / (count_i over all ranks)."""
    means: Tensor
    """`[N + 1]` float64, detached: sum / count over all ranks; 0 where nothing was counted."""


def global_loss(losses: LossSums, weights: Tensor) -> GlobalLoss:
    """Divides sums by what all ranks counted.

    Data-parallel training averages gradients over ranks, and TorchRec's sharded tables divide theirs by the
    number of ranks: the factor world_size makes the gradient that of the whole batch's mean, whoever holds which
    part of it.

    Args:
        losses: of this rank.
        weights: `[N + 1]`.
    """
    totals = torch.stack((losses.sums.detach().double(), losses.counts))
    dist.all_reduce(totals)
    counts = totals[1].clamp(min=1)
    scale = (weights * dist.get_world_size() / counts).to(losses.sums.dtype)
    return GlobalLoss((losses.sums * scale).sum(), totals[0] / counts)
