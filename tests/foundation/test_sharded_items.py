"""Item ids spread over processes: the same loss and the same rows as a dense table with the same optimizer."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from foundation.checkpoint import load_checkpoint, save_checkpoint
from foundation.distributed import all_reduce_sum, process_group
from foundation.item_table import ItemTableConfig
from foundation.library_notices import library_notices_off
from foundation.sharded_items import ShardedItemIds, unique_rows

ROWS, WIDTH, STEPS, RATE = 41, 8, 6, 0.1


def _first_weight() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def _part(step: int, part: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """History, targets, negatives and queries of one of a step's two parts; part 1 of step 3 has no tokens."""
    generator = torch.Generator().manual_seed(10 * step + part)
    tokens = 0 if (step, part) == (3, 1) else 9
    history, targets = torch.randint(ROWS, (2, tokens), generator=generator)
    negatives = torch.randint(ROWS, (5,), generator=generator)
    return history, targets, negatives, torch.randn(tokens, WIDTH, generator=generator)


def _loss(vectors: Tensor, history: Tensor, targets: Tensor, negatives: Tensor, queries: Tensor) -> Tensor:
    """Sampled softmax, summed; vectors [U, D] stand at both sides, as in the model."""
    hidden = queries + vectors[history].tanh()
    positive = (hidden * vectors[targets]).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, hidden @ vectors[negatives].T], dim=1)
    return (logits.logsumexp(dim=1) - positive[:, 0]).sum()


def _num_targets(step: int) -> int:
    return sum(len(_part(step, part)[1]) for part in (0, 1))


def _dense_reference() -> tuple[list[float], Tensor]:
    weight = _first_weight().double()
    momentum = torch.zeros(ROWS, dtype=torch.float64)
    losses = []
    for step in range(STEPS):
        leaf = weight.clone().requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        for part in (0, 1):
            history, targets, negatives, queries = _part(step, part)
            summed = _loss(leaf, history, targets, negatives, queries.double())
            loss = loss + summed / _num_targets(step)
        (gradient,) = torch.autograd.grad(loss, leaf)
        losses.append(loss.item())
        momentum += gradient.square().mean(dim=1)
        weight -= RATE * gradient / (momentum.sqrt()[:, None] + 1e-8)
    return losses, weight.float()


def _train(table: ShardedItemIds, steps: range) -> list[float]:
    """Every rank takes the parts that are its own, in one look-up a step."""
    losses = []
    for step in steps:
        parts = [_part(step, part) for part in range(dist.get_rank(), 2, dist.get_world_size())]
        rows, places = unique_rows(*(each for part in parts for each in part[:3]))
        leaf = table.begin(rows, RATE)
        total = torch.zeros(())
        for number, part in enumerate(parts):
            history, targets, negatives = places[3 * number : 3 * number + 3]
            loss = _loss(leaf, history, targets, negatives, part[3])
            loss.backward()
            total += loss.detach()
        table.finish(_num_targets(step))
        losses.append(all_reduce_sum(total).item() / _num_targets(step))
    return losses


def _check_against_dense() -> None:
    table = ShardedItemIds(_first_weight(), ItemTableConfig("sharded"))
    losses = _train(table, range(STEPS))
    expected_losses, expected = _dense_reference()
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert losses[0] != pytest.approx(losses[-1], rel=1e-2)
    rows = torch.tensor([40, 0, 7])
    assert torch.allclose(table.look_up(rows), expected[rows], atol=1e-5)
    whole = table.whole()
    assert (whole is None) == (dist.get_rank() > 0)
    if whole is not None:
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)


def _as_rank(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
    _check_against_dense()
    table = ShardedItemIds(_first_weight(), ItemTableConfig("sharded"))
    _train(table, range(3))
    with library_notices_off():
        save_checkpoint(folder / "checkpoints", 3, {"items": table.state()})
    dist.destroy_process_group()


def test_two_processes_train_as_a_dense_table_and_one_goes_on(tmp_path):
    spawn(_as_rank, args=(2, tmp_path), nprocs=2)
    with process_group(alone=True):
        table = ShardedItemIds(torch.zeros(ROWS, WIDTH), ItemTableConfig("sharded"))
        with library_notices_off():
            load_checkpoint(tmp_path / "checkpoints" / "step-00000003", {"items": table.state()})
        losses = _train(table, range(3, STEPS))
        expected_losses, expected = _dense_reference()
        assert losses == pytest.approx(expected_losses[3:], rel=1e-5)
        torch.testing.assert_close(table.whole(), expected, rtol=1e-5, atol=1e-5)


def test_one_process_trains_as_a_dense_table_without_warnings():
    with process_group(alone=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_against_dense()


def test_a_step_begins_before_it_finishes():
    with process_group(alone=True):
        table = ShardedItemIds(_first_weight(), ItemTableConfig("sharded"))
        with pytest.raises(RuntimeError, match="begin"):
            table.finish(1)


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=4))
def test_unique_rows_give_every_id_back(lists):
    ids = [torch.tensor(each, dtype=torch.int64) for each in lists]
    rows, places = unique_rows(*ids)
    assert rows.tolist() == sorted({row for each in lists for row in each})
    assert [rows[place].tolist() for place in places] == lists


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="items is 'split'"):
        ItemTableConfig("split")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="item_learning_rate is 0"):
        ItemTableConfig(item_learning_rate=0)
    with pytest.raises(ValueError, match="needs 'sampled'"):
        ItemTableConfig("sharded").check_softmax("full")
    ItemTableConfig("sharded").check_softmax("sampled")
    ItemTableConfig("dense").check_softmax("full")
