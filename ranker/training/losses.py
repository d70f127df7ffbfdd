"""What co-training minimises: a binary cross-entropy per task and mode, and the decoder's own sequence objectives.

Shapes: B requests, C candidates over the batch, T packed tokens, R newest tokens of the requests, D decoder width,
N tasks, P parts of the loss.

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

from foundation.item_tower import ItemVectors
from foundation.objectives.config import MultiTokenConfig
from foundation.objectives.heads import Heads
from foundation.objectives.softmax import item_set_loss, next_item_loss
from ranker.arches.profile_tower import DecoderTower
from ranker.model import Ranker, RankerInputs
from ranker.training.freezing import is_frozen
from ranker.training.targets import Targets


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses, and the sequence objectives that keep the decoder a model of sequences.

    They are left out where the whole foundation model is frozen.

    Attributes:
        next_item_weight: of the next-item loss of the decoder's own tokens, against 1 for each task.
        tokens_per_request: the newest so many tokens of each request enter it, its own token among them; they
            bound its cost, and the newest events are those that the foundation model has not been trained on.
        multi_token_horizon: each of them predicts the set of so many events, from its own on, up to the first behind
            the request; 0: its own event alone.
        multi_token_half_life_s: seconds after which an event of the set counts half; 0: all count alike.
        head_weight: of the loss of each head that the release was trained with, against the next item's.
    """

    next_item_weight: float = 0.1
    tokens_per_request: int = 16
    multi_token_horizon: int = 0
    multi_token_half_life_s: float = 0.0
    head_weight: float = 0.005

    def __post_init__(self) -> None:
        least = {"next_item_weight": 0, "tokens_per_request": 1, "multi_token_horizon": 0}
        for name, smallest in (least | {"multi_token_half_life_s": 0, "head_weight": 0}).items():
            if getattr(self, name) < smallest:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must be at least {smallest}")

    @property
    def multi_token(self) -> MultiTokenConfig:
        """As `foundation.objectives` takes it."""
        return MultiTokenConfig(self.multi_token_horizon, half_life=self.multi_token_half_life_s)


class LossSums(NamedTuple):
    """Sums of losses and how many each is a sum of, in the order of `RankerWithLoss.names`."""

    sums: Tensor
    """`[P]`."""
    counts: Tensor
    """`[P]` float64, exact integers."""
    logits: Tensor | None = None
    """`[C, S]`, detached: of the first S parts, which are the tasks in each mode."""


class RankerWithLoss(nn.Module):
    """A ranker and its losses as one module, which is what `DistributedModelParallel` wraps.

    Parts of the loss: each task's by its name, in vector mode; `TASK_crossing` in crossing mode, where candidates
    cross layers of the decoder; `next_item` and `head.NAME` for each head, unless nothing of the foundation model is
    trained.

    Args:
        ranker: trained in place; what is frozen is so already.
        config: weights.
        heads: of the release, trained along.
    """

    def __init__(self, ranker: Ranker, config: LossConfig, heads: Heads | None = None) -> None:
        super().__init__()
        self.ranker = ranker
        tower = ranker.profile_tower
        self._learns_sequences = isinstance(tower, DecoderTower) and not is_frozen(tower.foundation)
        self.heads = heads if self._learns_sequences and config.head_weight > 0 else None
        parts = [(name, 1.0) for name in ranker.tasks]
        if ranker.crossing is not None:
            parts += [(f"{name}_crossing", 1.0) for name in ranker.tasks]
        if self._learns_sequences:
            parts.append(("next_item", config.next_item_weight))
        if self.heads is not None:
            of_each = config.next_item_weight * config.head_weight
            parts += [(f"head.{name}", of_each) for name in self.heads.names]
        self.num_scores = len(ranker.tasks) * (1 if ranker.crossing is None else 2)
        self.names = tuple(name for name, _ in parts)
        self.weights = tuple(weight for _, weight in parts)

    def forward(self, batch: RankerInputs, targets: Targets) -> LossSums:
        """Losses of one rank's share of a batch; the decoder runs once per request, for all of them."""
        item_vectors = self.ranker.item_vectors()
        encoding = self.ranker.encode(batch.profile, item_vectors)
        both = self.ranker.score_both(encoding.state, batch.candidates, item_vectors, batch.marks)
        of_modes = [logits for logits in both if logits is not None]
        parts = [task_losses(logits, targets.labels, targets.mask) for logits in of_modes]
        if self._learns_sequences:
            assert encoding.hidden is not None and item_vectors is not None
            parts.append(self._sequence_losses(encoding.hidden, item_vectors, targets))
        sums, counts = (torch.cat(each) for each in zip(*parts, strict=True))
        return LossSums(sums, counts, torch.cat(of_modes, dim=1).detach())

    def _sequence_losses(
        self, hidden_TD: Tensor, item_vectors: ItemVectors, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Of the next item and of each head."""
        tower = self.ranker.profile_tower
        assert isinstance(tower, DecoderTower)
        temperature = tower.foundation.config.temperature
        hidden_RD, vectors = hidden_TD.index_select(0, targets.tokens), item_vectors.vectors
        if targets.pairs is None:
            losses = [next_item_loss(hidden_RD, vectors, targets.next_item, temperature)]
        else:
            losses = [item_set_loss(hidden_RD, vectors, targets.pairs, temperature)]
        if self.heads is not None:
            assert targets.heads is not None
            losses += self.heads.loss(hidden_RD, targets.heads).values()
        sums, counts = zip(*losses, strict=True)
        return torch.stack(sums), torch.stack(counts).double()


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
    """`[P]` float64, detached: sum / count over all ranks; 0 where nothing was counted."""


def global_loss(losses: LossSums, weights: Tensor) -> GlobalLoss:
    """Divides sums by what all ranks counted.

    Data-parallel training averages gradients over ranks, and TorchRec's sharded tables divide theirs by the
    number of ranks: the factor world_size makes the gradient that of the whole batch's mean, whoever holds which
    part of it.

    Args:
        losses: of this rank.
        weights: `[P]`.
    """
    totals = torch.stack((losses.sums.detach().double(), losses.counts))
    dist.all_reduce(totals)
    counts = totals[1].clamp(min=1)
    scale = (weights * dist.get_world_size() / counts).to(losses.sums.dtype)
    return GlobalLoss((losses.sums * scale).sum(), totals[0] / counts)
