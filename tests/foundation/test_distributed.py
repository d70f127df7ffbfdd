"""Gradients over processes: sums, whichever process had them; parts that processes can share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.spawn import spawn

from foundation.distributed import (
    all_reduce_gradients,
    all_reduce_sum,
    barrier,
    check_parts,
    first_rank_says,
    is_first_rank,
    own_cores,
    owned_parts,
    process_group,
    rank,
    world_size,
)
from foundation.errors import DataError


def _three_layers() -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(5, 1)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _as_rank(number: int, size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=size)
    assert (rank(), world_size(), is_first_rank()) == (number, size, number == 0)
    first, second, unused = _three_layers()
    first(torch.full((1, 3), number + 1.0)).sum().backward()
    if number:
        second(torch.ones(1, 2)).sum().backward()
    model = nn.ModuleList([first, second, unused])
    all_reduce_gradients(model)
    # Inputs of 1 and of 2; the second layer's gradient is rank 1's alone; the third has none anywhere.
    assert torch.equal(_gradient(first.weight), torch.full((2, 3), 3.0))
    assert torch.equal(_gradient(first.bias), torch.full((2,), 2.0))
    assert torch.equal(_gradient(second.weight), torch.ones(4, 2))
    assert unused.weight.grad is None
    assert all_reduce_sum(torch.tensor([number + 1.0])).item() == 3.0
    assert first_rank_says(7.5 if number == 0 else 1.0) == 7.5
    assert owned_parts(4) == [number, number + 2]
    check_parts(4)
    with pytest.raises(DataError, match=r"batch\.parts is 3 and there are 2 processes"):
        check_parts(3)
    dist.destroy_process_group()


def test_two_processes_add_up_their_gradients(tmp_path):
    spawn(_as_rank, args=(2, tmp_path), nprocs=2)


def test_alone_everything_is_as_it_was():
    layer, *_ = _three_layers()
    layer(torch.ones(1, 3)).sum().backward()
    before = _gradient(layer.weight).clone()
    all_reduce_gradients(layer)
    barrier()
    assert torch.equal(_gradient(layer.weight), before)
    assert (rank(), world_size(), owned_parts(3)) == (0, 1, [0, 1, 2])
    check_parts(3)
    assert first_rank_says(2.5) == 2.5


def test_a_group_of_one_is_made_only_when_asked_for():
    with process_group() as who:
        assert who == (0, 1)
        assert not dist.is_initialized()
    with process_group(alone=True) as who:
        assert who == (0, 1)
        assert dist.is_initialized()
    assert not dist.is_initialized()


@given(cores=st.sets(st.integers(0, 63), min_size=1, max_size=20), processes=st.integers(1, 8))
def test_processes_of_a_machine_share_its_cores(cores: set[int], processes: int) -> None:
    shares = [own_cores(cores, rank, processes) for rank in range(processes)]
    assert set().union(*shares) == cores
    if len(cores) >= processes:
        assert sum(map(len, shares)) == len(cores)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    else:
        assert all(share == cores for share in shares)
