"""Which rank keeps which rows of which embedding table: TorchRec's planner decides, a file remembers.

A plan is kept because sums of rows from several ranks round otherwise than sums on one: with its plan a run
that goes on after a kill ends in the weights of an unbroken one, whatever the planner would say by then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import torch.distributed as dist
import tyro
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    ParameterConstraints,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from foundation.atomic import atomic_file
from foundation.errors import DataError

PLAN = "plan.json"
# Of a host's memory: what the planner keeps for everything but tables.
RESERVED_SHARE = 0.2
# Rows of a table from which it is split: every rank then sends sums for every example, where a whole table's rank
# alone would. It is a guess at where memory counts for more than that.
SPLIT_ROWS = 1_000_000
TableSharding = Literal["auto", "table_wise", "row_wise"]


@dataclass(frozen=True)
class ShardingConfig:
    """How embedding tables are spread over the processes.

    Attributes:
        tables: "table_wise" keeps each table on one rank, "row_wise" splits the rows of each over all, "auto"
            leaves that to TorchRec's planner for tables of a million rows and keeps smaller ones whole. Which
            rank keeps what is the planner's choice, by size.
        plan: file that the plan is kept in and taken from, for the same number of processes; None keeps none.
    """

    tables: TableSharding = "auto"
    plan: Annotated[Path | None, tyro.conf.Suppress] = None

    def __post_init__(self) -> None:
        if self.tables not in (known := get_args(TableSharding)):
            raise ValueError(f"tables is {self.tables!r}; it must be one of {', '.join(known)}")

    def sharding_types(self, num_rows: int) -> list[str]:
        """What the planner may do with a table."""
        if self.tables != "auto":
            return [self.tables]
        whole = [ShardingType.TABLE_WISE.value]
        return whole if num_rows < SPLIT_ROWS else [*whole, ShardingType.ROW_WISE.value]


def table_plan(
    model: nn.Module, sharders: list[ModuleSharder[nn.Module]], config: ShardingConfig
) -> ShardingPlan:
    """The plan that `config.plan` keeps, or a new one that it keeps from now on; every rank must call it.

    Args:
        model: not yet sharded, equal on every rank.
        sharders: TorchRec's, of the modules to shard.

    Raises:
        DataError: the kept plan is of other tables, or no plan.
    """
    if config.plan is None:
        return _planned(model, sharders, config)
    # One rank reads, for all: another host may see the file later.
    is_first = dist.get_rank() == 0
    box = [config.plan.read_text(encoding="utf-8") if is_first and config.plan.exists() else None]
    dist.broadcast_object_list(box, src=0)
    kept = None if box[0] is None else _from_json(box[0], config.plan)
    if kept is not None and kept[0] == dist.get_world_size():
        _check(kept[1], model, config.plan)
        return kept[1]
    plan = _planned(model, sharders, config)
    if is_first:
        with atomic_file(config.plan) as partial:
            partial.write_text(json.dumps(_to_json(plan), indent=1), encoding="utf-8")
    return plan


def _planned(
    model: nn.Module, sharders: list[ModuleSharder[nn.Module]], config: ShardingConfig
) -> ShardingPlan:
    world_size = dist.get_world_size()
    # torchrun says how many processes a host has.
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(world_size=world_size, local_world_size=local_world_size),
            kernel_config=KernelConfig(compute_device="cpu"),
        ),
        storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
        constraints=_constraints(model, config),
    )
    return planner.collective_plan(model, sharders, dist.group.WORLD)


def _constraints(model: nn.Module, config: ShardingConfig) -> dict[str, ParameterConstraints]:
    """Tables go whole or by rows, to the kernel that has the fused optimizer.

    Left to itself the planner replicates small tables and leaves them to autograd.
    """
    return {
        table: ParameterConstraints(
            sharding_types=config.sharding_types(num_rows),
            compute_kernels=[EmbeddingComputeKernel.FUSED.value],
        )
        for _, table, (num_rows, _) in _tables(model)
    }


def _tables(model: nn.Module) -> Iterator[tuple[str, str, list[int]]]:
    """Module, name, and `[rows, width]` of every embedding table."""
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            for config in module.embedding_bag_configs():
                yield path, config.name, [config.num_embeddings, config.embedding_dim]


def _to_json(plan: ShardingPlan) -> dict[str, Any]:
    modules: dict[str, Any] = {}
    for path, tables in plan.plan.items():
        modules[path] = {}
        for name, shards in _shards(tables):
            table = cast(EmbeddingModuleShardingPlan, tables)[name]
            modules[path][name] = {
                "sharding": table.sharding_type,
                "kernel": table.compute_kernel,
                "ranks": table.ranks,
                "shards": [
                    {"offsets": each.shard_offsets, "sizes": each.shard_sizes, "place": str(each.placement)}
                    for each in shards
                ],
            }
    return {"processes": dist.get_world_size(), "modules": modules}


def _from_json(text: str, file: Path) -> tuple[int, ShardingPlan]:
    """For how many processes a kept plan is, and the plan."""

    def table(entry: dict[str, Any]) -> ParameterSharding:
        shards = [ShardMetadata(each["offsets"], each["sizes"], each["place"]) for each in entry["shards"]]
        spec = EnumerableShardingSpec(shards)
        return ParameterSharding(entry["sharding"], entry["kernel"], entry["ranks"], spec)

    try:
        kept = json.loads(text)
        modules: dict[str, ModuleShardingPlan] = {
            path: EmbeddingModuleShardingPlan({name: table(entry) for name, entry in tables.items()})
            for path, tables in kept["modules"].items()
        }
        return kept["processes"], ShardingPlan(modules)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file}: is no plan of tables; remove it to have them planned anew") from None


def _check(plan: ShardingPlan, model: nn.Module, file: Path) -> None:
    """Refuses a plan of other tables than the model's."""
    here = {(path, name): shape for path, name, shape in _tables(model)}
    planned = {
        (path, name): [sum(each.shard_sizes[0] for each in shards), shards[0].shard_sizes[1]]
        for path, tables in plan.plan.items()
        for name, shards in _shards(tables)
    }
    for path, name in sorted(here.keys() | planned.keys()):
        found, right = planned.get((path, name)), here.get((path, name))
        if found != right:
            raise DataError(
                f"{file}: table {name} of {path} is {_size(found)} in this plan and {_size(right)} in the ranker; "
                "remove the file to have the tables planned anew"
            )


def _shards(tables: ModuleShardingPlan) -> Iterator[tuple[str, list[ShardMetadata]]]:
    """Every table of a module, and where its rows are."""
    for name, table in cast(EmbeddingModuleShardingPlan, tables).items():
        spec = table.sharding_spec
        assert isinstance(spec, EnumerableShardingSpec), (
            f"{name}: the fused kernel has a place for each shard"
        )
        yield name, spec.shards


def _size(shape: list[int] | None) -> str:
    return "missing" if shape is None else f"{shape[0]} x {shape[1]}"
