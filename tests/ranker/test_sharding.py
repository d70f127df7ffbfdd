"""Tables over processes: what the plan says, that it is kept, reused and checked, and that no weight depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.errors import DataError
from ranker.training.sharding import process_group, shard, unsharded_state
from ranker.training.table_plan import SPLIT_ROWS, ShardingConfig

ROWS = {"large": 50, "small": 7}
KEYS = ["large", "small"]


class Bags(nn.Module):
    """Two tables, a sum and a mean, and a dense layer."""

    def __init__(self, rows: dict[str, int] = ROWS) -> None:
        super().__init__()
        pooling = {"large": PoolingType.SUM, "small": PoolingType.MEAN}
        self.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=name,
                    embedding_dim=8,
                    num_embeddings=number,
                    feature_names=[name],
                    pooling=pooling[name],
                )
                for name, number in rows.items()
            ]
        )
        self.head = nn.Linear(8 * len(rows), 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.head(self.bags(features).values())


def model(rows: dict[str, int] = ROWS) -> Bags:
    torch.manual_seed(0)
    return Bags(rows)


def features(part: slice) -> KeyedJaggedTensor:
    """Of four examples those in `part`."""
    values = {"large": [[1, 2, 49], [], [30], [1, 1]], "small": [[6], [0, 1], [3, 3, 3], []]}
    chosen = [each for key in KEYS for each in values[key][part]]
    return KeyedJaggedTensor(
        KEYS,
        torch.tensor([row for each in chosen for row in each]),
        lengths=torch.tensor([len(each) for each in chosen]),
    )


def plan_of(file: Path) -> dict[str, str]:
    return {
        name: entry["sharding"] for name, entry in json.loads(file.read_text())["modules"]["bags"].items()
    }


def test_a_plan_is_kept_and_reused(tmp_path) -> None:
    file = tmp_path / "run" / "plan.json"
    file.parent.mkdir()
    with process_group():
        shard(model(), 0.1, ShardingConfig("row_wise", file))
        assert plan_of(file) == {"large": "row_wise", "small": "row_wise"}
        # What the planner would choose now is not asked.
        before = file.read_bytes()
        shard(model(), 0.1, ShardingConfig("table_wise", file))
        assert file.read_bytes() == before
        kept = json.loads(before)
        kept["processes"] = 2
        file.write_text(json.dumps(kept))
        shard(model(), 0.1, ShardingConfig("table_wise", file))
    assert plan_of(file) == {"large": "table_wise", "small": "table_wise"}
    assert json.loads(file.read_text())["processes"] == 1


def test_a_plan_of_other_tables_is_refused(tmp_path) -> None:
    file = tmp_path / "plan.json"
    with process_group():
        shard(model(), 0.1, ShardingConfig(plan=file))
        with pytest.raises(
            DataError, match=r"plan.json: table large of bags is 50 x 8 .* and 51 x 8 in the ranker"
        ):
            shard(model({"large": 51, "small": 7}), 0.1, ShardingConfig(plan=file))
        with pytest.raises(DataError, match=r"table small of bags is 7 x 8 in this plan and missing"):
            shard(model({"large": 50}), 0.1, ShardingConfig(plan=file))
        file.write_text('{"processes": 1}')
        with pytest.raises(DataError, match=r"plan.json: is no plan of tables; remove it"):
            shard(model(), 0.1, ShardingConfig(plan=file))


def test_rows_are_split_where_it_pays() -> None:
    assert ShardingConfig().sharding_types(SPLIT_ROWS - 1) == ["table_wise"]
    assert ShardingConfig().sharding_types(SPLIT_ROWS) == ["table_wise", "row_wise"]
    assert ShardingConfig("row_wise").sharding_types(2) == ["row_wise"]


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="tables is 'column_wise'"):
        ShardingConfig("column_wise")  # pyright: ignore[reportArgumentType]


def trained(config: ShardingConfig, part: slice) -> dict[str, Tensor] | None:
    """Weights after three steps of the tables on examples of all ranks together, on rank 0."""
    sharded = shard(model(), 0.1, config)
    for _ in range(3):
        outputs = sharded(features(part))
        # DistributedModelParallel takes the mean of the ranks' gradients.
        (outputs.square().sum() * dist.get_world_size()).backward()
        sharded.zero_grad()
    return unsharded_state(sharded)


def _compare(rank: int, world_size: int, folder: Path, alone: dict[str, Tensor]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    # Not evenly: ranks have different numbers of candidates.
    share = slice(1) if rank == 0 else slice(1, None)
    for tables in ("auto", "row_wise"):
        plan = folder / f"{tables}.json"
        both = trained(ShardingConfig(tables, plan), share)
        again = trained(ShardingConfig(tables, plan), share)
        if both is None or again is None:
            continue
        for name, weight in alone.items():
            torch.testing.assert_close(both[name], weight, rtol=1e-6, atol=1e-6)
            assert torch.equal(both[name], again[name]), name
    dist.destroy_process_group()


def test_two_processes_train_the_tables_of_one_whatever_the_plan(tmp_path) -> None:
    with process_group():
        alone = trained(ShardingConfig(), slice(None))
    assert alone is not None
    before = model().state_dict()["bags.embedding_bags.large.weight"]
    after = alone["bags.embedding_bags.large.weight"]
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == [1, 2, 30, 49]
    spawn(_compare, args=(2, tmp_path, alone), nprocs=2)
    split = json.loads((tmp_path / "row_wise.json").read_text())["modules"]["bags"]["large"]["shards"]
    assert [each["sizes"] for each in split] == [[25, 8], [25, 8]]
    assert [each["place"] for each in split] == ["rank:0/cpu", "rank:1/cpu"]
    whole = json.loads((tmp_path / "auto.json").read_text())["modules"]["bags"]
    assert sorted(entry["ranks"] for entry in whole.values()) == [[0], [1]]
