"""An item id table too large for one process: its rows spread over the ranks by TorchRec, and looked up by row.

One `EmbeddingCollection` call a step serves every item id that the step's parts on this rank need: history,
targets and negatives. The table is updated in the backward pass by FBGEMM's fused optimizer, row by row, with the
gradient of the whole step:

    rows_U, (history, targets, negatives) = unique_rows(history, targets, negatives)
    ids_UD = table.begin(rows_U, rate)   a leaf: each part's loss is computed from it and backpropagated into it
    table.finish(num_targets)            ids_UD.grad / num_targets, over all ranks, updates the table

The table is no module: a model's parameters, gradients, clipping and weight decay are those of its dense part.
Letters: I item rows, U different rows of a step on this rank, D width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.item_table import ItemTableConfig
from foundation.library_notices import library_notices_off

_FEATURE = "item"
_TABLE = "item_ids"
_WEIGHT = f"ids.embeddings.{_TABLE}.weight"
_EPS = 1e-8


class _Table(nn.Module):
    def __init__(self, ids: EmbeddingCollection) -> None:
        super().__init__()
        self.ids = ids

    def forward(self, rows: KeyedJaggedTensor) -> Tensor:
        return self.ids(rows)[_FEATURE].values()


class ShardedItemIds:
    """The id embeddings of all items, rows spread over the ranks; a process group must be there.

    Every rank must make every call, also one that has no rows to look up.

    Args:
        weight_ID: first values, equal on every rank; float32.
        config: its learning rate.
    """

    def __init__(self, weight_ID: Tensor, config: ItemTableConfig) -> None:
        self.config = config
        self.num_rows, self.width = weight_ID.shape
        with library_notices_off():
            self._table = _shard(weight_ID, config)
            self._optimizer = self._table.fused_optimizer
            shards = self._weight().local_shards()
        with torch.no_grad():
            for piece in shards:
                first, rows = piece.metadata.shard_offsets[0], piece.metadata.shard_sizes[0]
                piece.tensor.copy_(weight_ID[first : first + rows])
        self._step: tuple[Tensor, Tensor] | None = None

    def begin(self, rows_U: Tensor, rate: float) -> Tensor:
        """The id embeddings `[U, D]` of int64 rows, each named once: a leaf that collects gradients.

        Args:
            rows_U: see `unique_rows`.
            rate: learning rate of this step, see `ItemTableConfig.item_learning_rate`.
        """
        # FBGEMM notes the rate as rows are looked up, and uses it in their backward pass.
        for group in self._optimizer.param_groups:
            cast(dict[str, Any], group)["lr"] = rate
        self._optimizer.step()
        looked_up_UD = self._look_up(rows_U)
        leaf_UD = looked_up_UD.detach().requires_grad_()
        self._step = looked_up_UD, leaf_UD
        return leaf_UD

    def finish(self, num_targets: int) -> None:
        """Updates the table from the gradients of all ranks' leaves.

        Args:
            num_targets: of the step over all ranks: gradients of sums are divided by it.

        Raises:
            RuntimeError: there was no `begin`.
        """
        if self._step is None:
            raise RuntimeError("finish() without begin(); a step's rows are looked up first")
        looked_up_UD, leaf_UD = self._step
        self._step = None
        gradient_UD = torch.zeros_like(leaf_UD) if leaf_UD.grad is None else leaf_UD.grad
        # TorchRec divides gradients by the number of ranks, for losses that are means over ranks.
        looked_up_UD.backward(gradient_UD * (dist.get_world_size() / num_targets))

    @torch.no_grad()
    def look_up(self, rows_U: Tensor) -> Tensor:
        """The id embeddings `[U, D]` of int64 rows, to read only."""
        return self._look_up(rows_U).detach()

    def whole(self) -> Tensor | None:
        """The whole table `[I, D]` on rank 0, None on the others."""
        weight = self._weight()
        with library_notices_off():
            whole = torch.empty(weight.size()) if dist.get_rank() == 0 else None
            weight.gather(dst=0, out=whole)
        return whole

    def state(self) -> dict[str, Any]:
        """Rows and optimizer state for `foundation.checkpoint`, read back in place: they are live."""
        return {"rows": self._weight(), "optimizer": self._optimizer.state_dict()["state"]}

    def _look_up(self, rows_U: Tensor) -> Tensor:
        lengths = torch.tensor([rows_U.shape[0]])
        with library_notices_off():
            return self._table(KeyedJaggedTensor(keys=[_FEATURE], values=rows_U, lengths=lengths))

    def _weight(self) -> ShardedTensor:
        return self._table.state_dict()[_WEIGHT]


def unique_rows(*ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The different rows among int64 tensors of any shapes, and the tensors with places among them instead.

    Returns:
        (rows `[U]`, ascending; tensors of the same shapes).
    """
    rows_U, places = torch.unique(torch.cat([each.flatten() for each in ids]), return_inverse=True)
    pieces = places.split([each.numel() for each in ids])
    return rows_U, tuple(piece.view_as(each) for piece, each in zip(pieces, ids, strict=True))


def _shard(weight_ID: Tensor, config: ItemTableConfig) -> DistributedModelParallel:
    num_rows, width = weight_ID.shape
    table = EmbeddingConfig(
        num_embeddings=num_rows, embedding_dim=width, name=_TABLE, feature_names=[_FEATURE]
    )
    ids = EmbeddingCollection(tables=[table], device=torch.device("meta"))
    fused = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": config.item_learning_rate,
        "eps": _EPS,
    }
    # TorchRec types sharders of any module, and its own as those of one.
    sharder = cast(ModuleSharder[nn.Module], EmbeddingCollectionSharder(fused_params=fused))
    plan = construct_module_sharding_plan(
        ids,
        {_TABLE: row_wise(compute_kernel=EmbeddingComputeKernel.FUSED.value)},
        sharder,
        local_size=dist.get_world_size(),
        world_size=dist.get_world_size(),
        device_type="cpu",
    )
    return DistributedModelParallel(
        _Table(ids), device=torch.device("cpu"), plan=ShardingPlan({"ids": plan}), sharders=[sharder]
    )
