"""The plain pre-norm block: attention, then a feed-forward of two layers.

Shapes: T packed tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from foundation.attention import CausalSelfAttention
from foundation.dropout import Dropout
from foundation.key_values import LayerKeyValues
from foundation.shared_inputs import SharedInputs

FEED_FORWARD_MULTIPLE = 4


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, hidden width 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, FEED_FORWARD_MULTIPLE * width)
        self.activation = nn.GELU()
        self.project_out = nn.Linear(FEED_FORWARD_MULTIPLE * width, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        """`[T, D]` to `[T, D]`."""
        return self.project_out(self.activation(self.project_in(x_TD)))


class PlainBlock(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)), each with dropout on what it adds.

    Args:
        width: D.
        num_heads: of the attention.
        dropout: the share dropped, in [0, 1).
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, num_heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_TD: Tensor, shared: SharedInputs, stored: LayerKeyValues | None = None
    ) -> tuple[Tensor, LayerKeyValues]:
        """`[T, D]` to `[T, D]`, with the keys and values of all tokens: the stored and these.

        Where only some hidden states are read (`SharedInputs.query_rows`), to `[B, D]` of them.
        """
        attended_TD, kept = self.attention(self.attention_norm(x_TD), shared, stored)
        x_TD = shared.read_of(x_TD) + self.dropout(attended_TD)
        return x_TD + self.dropout(self.feed_forward(self.feed_forward_norm(x_TD))), kept
