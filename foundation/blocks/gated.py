"""The block with gated residuals: each token decides how much of what a layer adds it takes.

Shapes: T packed tokens, D model width, F feed-forward width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from foundation.attention import CausalSelfAttention
from foundation.dropout import Dropout
from foundation.key_values import LayerKeyValues
from foundation.shared_inputs import SharedInputs

# Three matrices rather than two: 8/3 D costs what a plain feed-forward of 4 D does (arXiv 2002.05202).
SWIGLU_MULTIPLE = 8 / 3
SWIGLU_MULTIPLE_OF = 8


class SwiGLU(nn.Module):
    """W_o(silu(W_1 x) * W_2 x) (arXiv 2002.05202), hidden width 8/3 D rounded up to a multiple of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-int(SWIGLU_MULTIPLE * width) // SWIGLU_MULTIPLE_OF) * SWIGLU_MULTIPLE_OF
        self.project_in = nn.Linear(width, 2 * hidden, bias=False)
        self.project_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """`[T, D]` to `[T, D]`."""
        gate_TF, value_TF = self.project_in(x_TD).chunk(2, dim=-1)
        return self.project_out(F.silu(gate_TF) * value_TF)


class GatedBlock(nn.Module):
    """x += sigmoid(W_1 x) * attention(norm(x)); x += sigmoid(W_2 x) * SwiGLU(norm(x)).

    LiGR (arXiv 2502.03417), as in eSASRec (arXiv 2508.06450); dropout on what each adds, before its gate.

    Args:
        width: D.
        num_heads: of the attention.
        dropout: the share dropped, in [0, 1).
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, num_heads)
        self.attention_gate = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = SwiGLU(width)
        self.feed_forward_gate = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_TD: Tensor, shared: SharedInputs, stored: LayerKeyValues | None = None
    ) -> tuple[Tensor, LayerKeyValues]:
        """`[T, D]` to `[T, D]`, with the keys and values of all tokens: the stored and these.

        Where only some hidden states are read (`SharedInputs.query_rows`), to `[B, D]` of them.
        """
        attended_TD, kept = self.attention(self.attention_norm(x_TD), shared, stored)
        x_TD = shared.read_of(x_TD)
        x_TD = x_TD + self.attention_gate(x_TD).sigmoid() * self.dropout(attended_TD)
        added_TD = self.feed_forward(self.feed_forward_norm(x_TD))
        return x_TD + self.feed_forward_gate(x_TD).sigmoid() * self.dropout(added_TD), kept
