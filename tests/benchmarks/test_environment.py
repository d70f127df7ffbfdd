"""What stands beside a result."""

from __future__ import annotations

import json

import torch

from benchmarks.ceiling import Machine, Work, count_flops, tensor_bytes
from benchmarks.environment import stamp


def test_the_stamp_is_plain_and_names_what_ran() -> None:
    stamped = json.loads(json.dumps(stamp()))
    assert stamped["threads"] == torch.get_num_threads()
    assert stamped["packages"]["torch"] == torch.__version__
    assert stamped["processor"] and stamped["commit"] and stamped["cores"] >= 1


def test_flops_of_a_product_and_of_attention_by_hand() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    q = torch.randn(2, 4, 6, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(q, q, q, is_causal=True)) == 2 * 4 * (2 * 6 * 6 * 8) * 2


def test_the_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    machine = Machine(matmul_gflops_per_s=100.0, memory_gbytes_per_s=10.0)
    assert Work(gflops=1.0, mbytes=1.0).floor_ms(machine) == 10.0
    assert Work(gflops=0.001, mbytes=50.0).floor_ms(machine) == 5.0


def test_a_shared_tensor_counts_once() -> None:
    weight = torch.zeros(10, 10)
    assert tensor_bytes([weight, weight, torch.zeros(5)]) == 420
