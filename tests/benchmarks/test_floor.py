"""The floor: what it counts is what the pruned graph multiplies, and how what is held to it is divided by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ceiling import Machine
from benchmarks.floor import Floor
from benchmarks.least_products import Product, least_products
from benchmarks.matrix_rates import MatrixRates, Rate
from benchmarks.workload import WORKLOADS, Workload

SMALL = {"num_requests": 4, "width": 64, "tokens": 24, "candidates": 10, "num_items": 50}


@pytest.mark.parametrize("name", ["reference", "crossing"])
def test_its_products_are_those_of_the_split_graph(name: str) -> None:
    workload = Workload(replace(WORKLOADS[name], **SMALL))
    halves, products = workload.halves, least_products(workload.ranker, 24, 10)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        halves.rank(*workload.requests[0])
    counted = counter.get_flop_counts()["Global"]
    assert sum(each.operations for each in products if each.weights) == (
        counted[torch.ops.aten.mm] + counted[torch.ops.aten.addmm]
    )
    # The dot products of 10 candidates, 8 each; where candidates cross, what they see of 24 tokens and of themselves.
    crossing = 2 * 2 * 10 * 25 * 64 if name == "crossing" else 0
    of_candidates = [each for each in products if each.part == "candidates" and not each.weights]
    assert sum(each.operations for each in of_candidates) == 2 * 10 * 64 * 8 + crossing


def test_attention_counts_what_is_seen() -> None:
    ranker = Workload(replace(WORKLOADS["reference"], **SMALL)).ranker
    attention = [
        each for each in least_products(ranker, 24, 10) if each.part == "profile" and not each.weights
    ]
    seen_by_lower_layers, seen_by_the_last = 3 * sum(range(1, 25)), 24
    # Twice: with keys, and of values; each a multiplication and an addition of 64 numbers.
    assert sum(each.operations for each in attention) == 2 * 2 * 64 * (
        seen_by_lower_layers + seen_by_the_last
    )


def test_rates_are_of_shapes_with_weights_and_rows() -> None:
    products = [
        Product("profile", 32, 16, 48, 3),
        Product("profile", 32, 16, 48),
        Product("profile", 1, 16, 48),
        Product("profile", 64, 16, 48, weights=False),
    ]
    rates = MatrixRates(products).measure()
    assert {rate.shape for rate in rates} == {(32, 16, 48)}
    assert {"mm", "panels"} <= {rate.library for rate in rates}
    assert all(0 < rate.gflops_per_s <= rate.luckiest_gflops_per_s for rate in rates)


def test_all_libraries_multiply_alike() -> None:
    from benchmarks.matrix_rates import _libraries

    x, weight = torch.randn(20, 24), torch.randn(40, 24)
    for name, multiply in _libraries(weight, 20).items():
        torch.testing.assert_close(multiply(x), x @ weight.t(), msg=name)


def test_a_median_over_the_best_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GFLOP at 100 GFLOP/s, the best of three rounds, take 20 ms."""
    floor = Floor([Product("profile", 1_000, 1_000, 1_000)], Machine(80.0, 10.0))
    for rate in (90.0, 100.0, 50.0):
        monkeypatch.setattr(
            floor._rates, "measure", lambda rate=rate: [Rate(rate, (1, 1, 1), "mm", rate + 25)]
        )
        floor.measure()
    assert floor.ms == pytest.approx(20)
    ratio = floor.ratio([[0.025, 0.022], [0.03]])
    assert ratio.value == pytest.approx(25 / 20)
    assert floor.ratio_at_luckiest([[0.025, 0.022], [0.03]]).value == pytest.approx(25 / 16)
    # Blocks of 22 or 30 ms, over the rounds of 100 (20 ms) and of 50 (40 ms).
    assert ratio.low == pytest.approx(0.75) and ratio.high == pytest.approx(1.25)
    report = floor.to_json()
    assert report["best"] == {"gflops_per_s": 100.0, "shape": [1, 1, 1], "library": "mm"}
    assert report["luckiest_run"] == {"gflops_per_s": 125.0, "floor_ms": 16.0}
