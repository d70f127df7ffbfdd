"""Which item rows a sampled softmax takes as negatives.

Letters: I item rows, M targets of the step, N negatives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Negatives(NamedTuple):
    """Item rows, shared by the step's tokens."""

    rows: Tensor  # [N] int64
    log_count: Tensor  # [N] float32, log of how often each one's row is expected among the N


def draw_negatives(
    num_uniform: int,
    num_in_batch: int,
    targets_M: Tensor,
    candidates_J: Tensor,
    generator: torch.Generator,
) -> Negatives:
    """Negatives from the catalogue, from the step's own targets, or from both.

    Args:
        num_uniform: drawn uniformly, with replacement, from `candidates_J`.
        num_in_batch: drawn without replacement from the step's targets, so frequent items come often; all of
            them where there are fewer.
        targets_M: int64 item rows, at least 2, of the step's tokens.
        candidates_J: int64 item rows that compete.
        generator: on the CPU, whatever the device of the rest.

    Returns:
        The uniform ones, then those of the batch. The expected count of a row is
        num_uniform / J + num_in_batch * (its share of the targets).
    """
    num_in_batch = min(num_in_batch, len(targets_M))
    drawn = torch.randint(len(candidates_J), (num_uniform,), generator=generator).to(candidates_J.device)
    shuffled = torch.randperm(len(targets_M), generator=generator)[:num_in_batch].to(targets_M.device)
    rows_N = torch.cat([candidates_J[drawn], targets_M[shuffled]])
    num_rows = int(torch.cat([candidates_J, targets_M, targets_M.new_zeros(1)]).max()) + 1
    count_I = torch.zeros(num_rows, device=rows_N.device)
    if num_in_batch:
        count_I += torch.bincount(targets_M, minlength=num_rows) * (num_in_batch / len(targets_M))
    if num_uniform:
        count_I[candidates_J] += num_uniform / len(candidates_J)
    return Negatives(rows_N, count_I[rows_N].log())
