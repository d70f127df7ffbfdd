"""The floor of a workload: its least matrix products at the best rate that this machine reached over their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.ceiling import Machine
from benchmarks.least_products import Product
from benchmarks.matrix_rates import MatrixRates, Rate
from benchmarks.percentiles import BOOTSTRAP_RESAMPLES, Ratio, percentile


class Floor:
    """Measured in rounds, between the blocks of whatever is held to it.

    Args:
        products: of one request.
        machine: rates that no workload decides.
    """

    def __init__(self, products: Sequence[Product], machine: Machine) -> None:
        self._products = tuple(products)
        self._machine = machine
        self._rates = MatrixRates(products)
        self._rounds: list[Rate] = []
        self._luckiest: list[float] = []

    @property
    def best(self) -> Rate:
        """Over all rounds so far."""
        return max(self._rounds)

    @property
    def ms(self) -> float:
        """No implementation whose products are no faster than the best of these needs less."""
        return self._ms(self.best.gflops_per_s)

    def measure(self) -> None:
        """One round."""
        rates = self._rates.measure()
        self._rounds.append(max(rates))
        self._luckiest.append(max(each.luckiest_gflops_per_s for each in rates))

    def ratio(self, blocks_s: Sequence[Sequence[float]]) -> Ratio:
        """Median of G blocks of seconds over the floor; its interval resamples blocks and the newest G rounds alike."""
        return self._ratio(blocks_s, [each.gflops_per_s for each in self._rounds])

    def ratio_at_luckiest(self, blocks_s: Sequence[Sequence[float]]) -> Ratio:
        """The same over the rate of the luckiest single product: a floor that even a product's median stays above."""
        return self._ratio(blocks_s, self._luckiest)

    def _ratio(self, blocks_s: Sequence[Sequence[float]], of_rounds: Sequence[float]) -> Ratio:
        rates = of_rounds[-len(blocks_s) :]
        assert len(rates) == len(blocks_s), "a round for each block"

        def median_ms(chosen: Sequence[int]) -> float:
            return 1e3 * percentile(np.concatenate([blocks_s[block] for block in chosen]), 50)

        draws = np.random.default_rng(0).integers(len(rates), size=(BOOTSTRAP_RESAMPLES, len(rates)))
        ratios = [median_ms(chosen) / self._ms(max(rates[block] for block in chosen)) for chosen in draws]
        low, high = np.quantile(ratios, [0.025, 0.975])
        return Ratio(median_ms(range(len(rates))) / self._ms(max(of_rounds)), float(low), float(high))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        parts = dict.fromkeys(product.part for product in self._products)
        return {
            "threads": torch.get_num_threads(),
            **self._machine.to_json(),
            "best": {
                "gflops_per_s": round(self.best.gflops_per_s, 1),
                "shape": list(self.best.shape),
                "library": self.best.library,
            },
            "gflops": {part: round(self._gflops(part), 4) for part in parts},
            "mbytes_of_weights": {
                part: round(sum(each.bytes for each in self._products if each.part == part) / 1e6, 3)
                for part in parts
            },
            "floor_ms": round(self.ms, 3),
            "luckiest_run": {
                "gflops_per_s": round(max(self._luckiest), 1),
                "floor_ms": round(self._ms(max(self._luckiest)), 3),
            },
        }

    def _gflops(self, *parts: str) -> float:
        return sum(each.operations for each in self._products if not parts or each.part in parts) / 1e9

    def _ms(self, gflops_per_s: float) -> float:
        return self._gflops() / gflops_per_s * 1e3
