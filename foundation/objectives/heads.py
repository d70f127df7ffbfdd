"""Auxiliary heads: linear classifiers on hidden states, one for each label (see `labels.py`).

Letters: T packed tokens, D model width, C classes of a head, K columns of a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from foundation.objectives.labels import LabelColumns, label_loss, label_shares, resolve_label
from foundation.tokenizer import Tokenizer


class Heads(nn.Module):
    """One softmax classifier for each label, all in one matrix product. A head reads hidden state t alone.

    Args:
        width: D.
        labels: what they predict, at least one.
    """

    def __init__(self, width: int, labels: Sequence[LabelColumns]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.project = nn.Linear(width, sum(label.num_classes for label in labels))

    @property
    def names(self) -> list[str]:
        """Names of the labels, as `build_heads` takes them."""
        return [label.name for label in self.labels]

    def forward(self, hidden_TD: Tensor) -> dict[str, Tensor]:
        """Logits `[T, C]` by label name."""
        logits = self.project(hidden_TD).split([label.num_classes for label in self.labels], dim=-1)
        return {label.name: each for label, each in zip(self.labels, logits, strict=True)}

    def loss(self, hidden_TD: Tensor, labels: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum of the cross entropies, number of labelled tokens) by label name.

        Args:
            hidden_TD: the decoder's output.
            labels: int64 `[T, K]` by name, from `token_labels`.
        """
        logits = self(hidden_TD)
        return {name: label_loss(logits[name], labels[name]) for name in logits}

    def marginal_loss(
        self, training: Mapping[str, Tensor], tested: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Mean cross entropy, in nats, of always predicting how frequent the classes are: what a head must beat.

        Args:
            training: labels by name whose frequencies are predicted.
            tested: labels that are predicted; None: the same. A class that only they have counts as seen once.

        Returns:
            By name; 0 where no token is labelled.
        """
        losses = {}
        for label in self.labels:
            seen_C = label_shares(training[label.name], label.num_classes)
            tested_C = seen_C if tested is None else label_shares(tested[label.name], label.num_classes)
            seen_C = torch.where((seen_C == 0) & (tested_C > 0), 1.0, seen_C)
            logs_C = (seen_C / seen_C.sum().clamp_min(1)).clamp_min(torch.finfo(torch.float64).tiny).log()
            losses[label.name] = float(-(tested_C * logs_C).sum() / tested_C.sum().clamp_min(1))
        return losses


def build_heads(names: Sequence[str], tokenizer: Tokenizer, width: int) -> Heads | None:
    """The heads `ObjectiveConfig.heads` names; None where it names none.

    Raises:
        DataError: a name that the schema doesn't offer; lists those that it does.
    """
    labels = [resolve_label(name, tokenizer, "heads") for name in names]
    return Heads(width, labels) if labels else None
