"""Spreading a ranker over processes: TorchRec's `DistributedModelParallel` on CPUs, over gloo.

Embedding tables are split (a table, or rows of it, to each rank) and updated by FBGEMM's fused row-wise
Adagrad; everything else is replicated, its gradients averaged.

TorchRec's `TrainPipelineSparseDist` isn't used: it hides the exchange of ids behind the step before, for which it
traces the model symbolically, and a ranker's jagged attention branches on sizes (`TraceError`). What is ready
ahead of a step is its batch, see `ranker.rows.loader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ModuleSharder

from foundation import distributed
from foundation.library_notices import library_notices_off
from ranker.training.row_wise import BagSharder, exchange_row_sums
from ranker.training.table_plan import ShardingConfig, table_plan

ADAGRAD_EPS = 1e-8


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Joins the ranks that torchrun started, or makes a group of one; yields (rank, world size).

    What TorchRec 1.8.0 and torch 2.13 say of each other meanwhile is hidden: nothing that a user could act
    on.
    """
    with library_notices_off(), distributed.process_group(alone=True) as group:
        yield group


def shard(
    model: nn.Module, learning_rate: float, config: ShardingConfig | None = None
) -> DistributedModelParallel:
    """Wraps a model whose embedding bags are then split over the ranks; its weights stay what they are.

    Args:
        model: equal on every rank.
        learning_rate: of the tables.
        config: how tables are split; None for the planner's choice, not kept.
    """
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    fused = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": learning_rate,
        "eps": ADAGRAD_EPS,
    }
    # TorchRec types sharders of any module, and its own as those of one.
    sharders = [cast(ModuleSharder[nn.Module], BagSharder(fused_params=fused))]
    assert dist.is_initialized(), "a process group must be there: see process_group()"
    sharded = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=table_plan(model, sharders, config or ShardingConfig()),
        sharders=sharders,
    )
    exchange_row_sums(sharded)
    _fill_tables(sharded, weights)
    return sharded


def unsharded_state(model: DistributedModelParallel) -> dict[str, Tensor] | None:
    """The model's state with whole tables, on rank 0; None on the others. Every rank must call it."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, ShardedTensor):
            whole = torch.empty(value.size()) if dist.get_rank() == 0 else None
            value.gather(dst=0, out=whole)
            value = whole
        if value is not None:
            state[name] = value.detach().clone()
    return state if dist.get_rank() == 0 else None


def table_names(model: DistributedModelParallel) -> set[str]:
    """Names of the embedding tables' parameters, those included that live on other ranks."""
    return {name for name, value in model.state_dict().items() if isinstance(value, ShardedTensor)}


@torch.no_grad()
def _fill_tables(sharded: DistributedModelParallel, weights: dict[str, Tensor]) -> None:
    """Copies table weights into the shards, which TorchRec initialises anew."""
    for name, value in sharded.state_dict().items():
        if isinstance(value, ShardedTensor):
            for piece in value.local_shards():
                rows, columns = piece.metadata.shard_offsets
                num_rows, num_columns = piece.metadata.shard_sizes
                piece.tensor.copy_(weights[name][rows : rows + num_rows, columns : columns + num_columns])
