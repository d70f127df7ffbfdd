"""How a ranker does on what it trains on, step by step and over all ranks: TorchRec's metric module.

Shapes: C candidates of a rank's batch, N scores (tasks, and where there are two modes, tasks of each).

A batch is measured with the weights before its update. TorchRec settles ties of its AUC by the order of candidates,
and calls it .5 where a class is missing: a finished ranker is measured by `ranker.evaluation.metrics` instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import (
    MetricsConfig,
    RecComputeMode,
    RecMetricDef,
    RecMetricEnum,
    RecTaskInfo,
)
from torchrec.metrics.metrics_namespace import MetricName, MetricNamespace, MetricPrefix, compose_metric_key

from foundation.library_notices import library_notices_off

WINDOW_CANDIDATES = 50_000
"""The newest so many candidates, over all ranks, are measured."""
_KEYS = {
    "normalised_entropy": (RecMetricEnum.NE, MetricNamespace.NE, MetricName.NE),
    "calibration": (RecMetricEnum.CALIBRATION, MetricNamespace.CALIBRATION, MetricName.CALIBRATION),
    "auc": (RecMetricEnum.AUC, MetricNamespace.AUC, MetricName.AUC),
}


class WindowedMetrics:
    """Normalised entropy, calibration and AUC over a window of training steps.

    A window starts anew where a run goes on after a kill. Nothing that is trained depends on it.

    Args:
        names: of the N scores.
        window_candidates: over all ranks.
    """

    def __init__(self, names: Sequence[str], window_candidates: int = WINDOW_CANDIDATES) -> None:
        self.names = tuple(names)
        tasks = [RecTaskInfo(name, f"{name}-label", f"{name}-prob", f"{name}-weight") for name in names]
        config = MetricsConfig(
            rec_tasks=tasks,
            rec_metrics={
                metric: RecMetricDef(rec_tasks=tasks, window_size=window_candidates)
                for metric, _, _ in _KEYS.values()
            },
            rec_compute_mode=RecComputeMode.FUSED_TASKS_COMPUTATION,
        )
        with library_notices_off():
            self._module = generate_metric_module(
                RecMetricModule,
                metrics_config=config,
                # Batches differ in size; TorchRec needs only that one fits into the window.
                batch_size=1,
                world_size=dist.get_world_size(),
                my_rank=dist.get_rank(),
                state_metrics_mapping={},
                device=torch.device("cpu"),
            )

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, mask: Tensor) -> None:
        """Adds this rank's share of a batch.

        Args:
            logits: `[C, N]`; as trained, without log rates: labels are of the same draw.
            labels, mask: `[C, N]`, as in `Targets`.
        """
        if not len(logits):
            return
        probs, weights = torch.sigmoid(logits), mask.to(logits.dtype)
        columns: dict[str, Tensor] = {}
        for column, name in enumerate(self.names):
            columns[f"{name}-prob"] = probs[:, column]
            columns[f"{name}-label"] = labels[:, column]
            columns[f"{name}-weight"] = weights[:, column]
        self._module.update(columns)

    def compute(self) -> dict[str, float]:
        """`{name}_{metric}` over the window and all ranks, on rank 0, else nothing; every rank must call it.

        A score without a positive in the window is left out.
        """
        found = self._module.compute().resolve()
        if dist.get_rank():
            return {}
        values = {name: {metric: float(found[_key(metric, name)]) for metric in _KEYS} for name in self.names}
        return {
            f"{name}_{metric}": value
            for name, by_metric in values.items()
            if by_metric["calibration"] > 0
            for metric, value in by_metric.items()
        }


def _key(metric: str, name: str) -> str:
    _, namespace, metric_name = _KEYS[metric]
    return compose_metric_key(namespace, name, metric_name, MetricPrefix.WINDOW)
