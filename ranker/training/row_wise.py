"""Embedding tables split by rows, on CPUs: what TorchRec 1.8.0 leaves out there.

Shapes: B examples of all ranks, b of this one, D width of all row-wise tables together.
"""

from __future__ import annotations

from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.dist_data import PooledEmbeddingsAllToAll, PooledEmbeddingsAwaitable
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.rw_sharding import RwPooledEmbeddingDist
from torchrec.distributed.types import ShardingType


class BagSharder(EmbeddingBagCollectionSharder):
    """Offers the planner rows on CPUs too, which TorchRec 1.8.0 does on GPUs alone though gloo can do it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Of a table: TorchRec's, and row-wise."""
        return sorted({*super().sharding_types(compute_device_type), ShardingType.ROW_WISE.value})


class RowSums(nn.Module):
    """Sums what the ranks found in their rows of row-wise tables: all-to-all, then a sum over the ranks.

    TorchRec's own is a reduce-scatter, which gloo has for parts of equal size alone; ranks' shares of a batch
    have different numbers of candidates.

    Args:
        group: the ranks.
        width: D.
    """

    def __init__(self, group: dist.ProcessGroup, width: int) -> None:
        super().__init__()
        parts = [width] * group.size()
        self._exchange = PooledEmbeddingsAllToAll(
            group, parts, callbacks=[lambda sums: sums.unflatten(1, (len(parts), width)).sum(dim=1)]
        )

    def forward(self, local_embs: Tensor, input_splits: list[int] | None = None) -> PooledEmbeddingsAwaitable:
        """Sums `[B, D]` of all ranks' examples here into sums `[b, D]` of this rank's, over all ranks."""
        return self._exchange(local_embs, batch_size_per_rank=input_splits)


def exchange_row_sums(sharded: nn.Module) -> None:
    """Puts `RowSums` in place wherever a sharded model sums over the ranks."""
    for module in sharded.modules():
        if not isinstance(module, ShardedEmbeddingBagCollection):
            continue
        for each in module._output_dists:
            if isinstance(each, RwPooledEmbeddingDist):
                # Where it is None, TorchRec makes its own at the first step; there is no setting.
                each._dist = cast(Any, RowSums(each._pg, sum(each._embedding_dims)))
