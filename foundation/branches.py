"""Branches: tokens that each continue a sequence on their own, seeing it and themselves, and not one another.

Shapes: T stored tokens, B sequences, S longest sequence, C branches over the batch, X most branches of a sequence,
H heads, K head width.

    sequence      a0 a1 a2 ┬ x        x, y and z all sit at position 3, right after a2;
                           ├ y        each sees a0 a1 a2 and itself
                           └ z

The sequence's keys and values are read in place by all of its branches: queries are padded by sequence, so nothing of
a sequence is repeated for a branch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foundation.attention_tiles import AttentionConfig, sight, to_dense, to_packed
from foundation.key_values import LayerKeyValues
from foundation.layout import Layout, layout


class Branches(NamedTuple):
    """Gather indices (int64) between branches, stored tokens and their dense grids."""

    layout: Layout
    """Of the branches, sequence by sequence; every position is that of the token after the sequence's last."""
    key_index: Tensor
    """`[B, S]`, rows of the stored tokens; 0 where padded."""
    lengths: Tensor
    """`[B]`, stored tokens of each sequence."""


def branches(stored_offsets: Tensor, branch_offsets: Tensor) -> Branches:
    """Where C branches lie beside the T stored tokens that they continue.

    Its shapes depend on data, so it runs ahead of the model, never inside an exported graph.

    Args:
        stored_offsets: `[B + 1]` of the stored tokens.
        branch_offsets: `[B + 1]` of the branches; a sequence may have none.

    Raises:
        ValueError: if the two are of different numbers of sequences.
    """
    if stored_offsets.shape != branch_offsets.shape:
        raise ValueError(
            f"branches are of {branch_offsets.numel() - 1} sequences, stored keys and values of "
            f"{stored_offsets.numel() - 1}"
        )
    lengths, numbers = stored_offsets.diff(), branch_offsets.diff()
    positions = lengths.repeat_interleave(numbers)
    return Branches(layout(numbers)._replace(positions=positions), layout(lengths).dense_index, lengths)


def seen_by_branches(branches: Branches, config: AttentionConfig) -> Tensor:
    """Which stored tokens the branches of a sequence see, `[B, 1, 1, S]` bool: all of them see the same."""
    keys = torch.arange(branches.key_index.shape[1], device=branches.key_index.device)
    distance, visible = sight(branches.lengths.view(-1, 1, 1), keys.view(1, 1, -1), config)
    return visible & (distance > 0)  # at distance 0 lies the branch itself, among stored tokens only padding


def branch_attention(
    q_CHK: Tensor, own: LayerKeyValues, stored: LayerKeyValues, branches: Branches, seen_B11S: Tensor
) -> Tensor:
    """softmax(q·k / sqrt(K)) v of each branch, over what it sees of its sequence and itself; `[C, H, K]`.

    With z = logsumexp of the scores of the stored tokens and s that of the branch itself, its own share is
    exp(s) / (exp(z) + exp(s)) = sigmoid(s - z): joined so, the result is exact.

    Args:
        q_CHK: queries of the branches.
        own: their keys and values, `[C, H, K]`.
        stored: those of the sequences, `[T, H, K]`.
        branches: where they lie.
        seen_B11S: from `seen_by_branches`.
    """
    q_CHK = q_CHK * q_CHK.shape[-1] ** -0.5
    keys = Layout(branches.key_index, *branches.layout[1:])
    k_BHSK, v_BHSK = to_dense(stored.keys_THK, keys), to_dense(stored.values_THK, keys)
    scores_BHXS = to_dense(q_CHK, branches.layout) @ k_BHSK.transpose(-1, -2)
    # Finite, so that a branch of an empty sequence takes itself alone and no gradient is lost to inf - inf.
    scores_BHXS = scores_BHXS.masked_fill(~seen_B11S, torch.finfo(scores_BHXS.dtype).min)
    total_BHX1 = scores_BHXS.logsumexp(-1, keepdim=True)
    of_sequence_CHK = to_packed((scores_BHXS - total_BHX1).exp() @ v_BHSK, branches.layout)
    of_itself_CH1 = (q_CHK * own.keys_THK).sum(-1, keepdim=True)
    share_CH1 = torch.sigmoid(of_itself_CH1 - to_packed(total_BHX1, branches.layout))
    return torch.lerp(of_sequence_CHK, own.values_THK, share_CH1)
