"""Intent first, then the item: what kind of thing comes next is predicted, and shifts which item is.

    p = softmax(W h + b),    h_items = h + sum_c p_c E_c

Letters: T packed tokens, D model width, C intents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02


class Intent(nn.Module):
    """Predicts an intent from a hidden state and adds its expected embedding, in training and serving alike.

    The expectation stands where the intent itself would, since at prediction time it isn't known.

    Args:
        width: D.
        num_classes: C.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.predict = nn.Linear(width, num_classes)
        self.embedding_CD = nn.Parameter(torch.empty(num_classes, width).normal_(std=EMBEDDING_STD))

    def forward(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states for the items, of the shape of `hidden_TD` (any leading dimensions), and logits `[.., C]`."""
        logits_TC = self.predict(hidden_TD)
        return hidden_TD + logits_TC.softmax(dim=-1) @ self.embedding_CD, logits_TC
