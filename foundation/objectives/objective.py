"""All that a model is trained for, tied together: what a batch's tokens are to predict, and its loss.

Letters: T packed tokens, B sequences, I item rows, D model width, K columns of a label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation.model import FoundationModel
from foundation.objectives.config import ObjectiveConfig
from foundation.objectives.heads import build_heads
from foundation.objectives.intent import Intent
from foundation.objectives.labels import label_loss, resolve_label, token_labels
from foundation.objectives.layer_wise import layer_wise_loss
from foundation.objectives.multi_token import Pairs, event_pairs
from foundation.objectives.negatives import draw_negatives
from foundation.objectives.signal import Signal
from foundation.objectives.softmax import item_set_loss, next_item_loss, sampled_next_item_loss
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import Span


class Targets(NamedTuple):
    """What the tokens of a batch are to predict."""

    item: Tensor  # [T] int64, item row of each token's event; below 2 is none
    weight: Tensor | None  # [T] float32, the event's signal; None: 1
    sequence: Tensor  # [T] int64
    pairs: Pairs | None  # of multi-token prediction
    labels: dict[str, Tensor]  # [T, K] int64 classes by name, of heads and intent

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on `device`."""
        return Targets(
            self.item.to(device),
            None if self.weight is None else self.weight.to(device),
            self.sequence.to(device),
            None if self.pairs is None else Pairs(*(each.to(device) for each in self.pairs)),
            {name: each.to(device) for name, each in self.labels.items()},
        )


class LossSums(NamedTuple):
    """Losses of one process's share of a batch, as sums.

    Gradients of `total`, added over processes, are divided by `num_targets` of all.
    """

    total: Tensor  # scalar, weighted sum of all losses; differentiable
    parts: dict[str, Tensor]  # [2] float64 each, detached: sum, and how many it is a sum of
    num_targets: Tensor  # scalar int64, tokens with an item to predict


class Objective(nn.Module):
    """Turns a batch's events into targets, and hidden states into a loss; holds the weights of heads and intent.

    Parts of the loss: "item" (the last layer's), "layers" (the mean over the earlier layers, where they learn),
    "intent", and "head.NAME" for each head.

    Args:
        config: what is learned.
        tokenizer: of the events.
        feature_rows: `[I, M]`, from `catalogue_feature_rows`.
        width: D.

    Raises:
        ValueError: the configuration names what the schema lacks.
    """

    def __init__(
        self, config: ObjectiveConfig, tokenizer: Tokenizer, feature_rows: NDArray[np.int64], width: int
    ) -> None:
        super().__init__()
        self.config = config
        self._tokenizer = tokenizer
        self._feature_rows = feature_rows
        self._signal = Signal(config.signal, tokenizer) if config.signal.facet else None
        self.heads = build_heads(config, tokenizer, width)
        name = config.intent.label
        label = resolve_label(name, tokenizer, "intent.label", own_request=True) if name else None
        self.intent = None if label is None else Intent(width, label)
        of_heads = () if self.heads is None else self.heads.labels
        self._labels = tuple(dict.fromkeys((*of_heads, *(() if label is None else (label,)))))

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts of the loss."""
        heads = () if self.heads is None else (f"head.{label.name}" for label in self.heads.labels)
        layers, intent = ("layers",) * (self.config.layer_weight > 0), ("intent",) * (self.intent is not None)
        return ("item", *layers, *intent, *heads)

    def targets(self, events: EventIds, span: Span, stops: NDArray[np.int64] | None = None) -> Targets:
        """Targets of a batch's tokens.

        Args:
            events: looked-up events of the dataset.
            span: the batch's tokens; token t is of event `span.rows[t]` and predicts it.
            stops: `[B]`, one past the last event of each sequence's profile that training may see, for multi-token
                prediction; None: the sequence's own end.
        """
        signal, rows = self._signal, span.rows
        labels = token_labels(self._labels, self._tokenizer, events, span, self._feature_rows)
        pairs = None
        if self.config.multi_token.horizon:
            ends = span_ends(span) if stops is None else stops
            pairs = event_pairs(self.config.multi_token, events, span, ends, signal)
        return Targets(
            item=torch.from_numpy(events.item[rows]),
            weight=None if signal is None else torch.from_numpy(signal.weights(events, rows)),
            sequence=torch.from_numpy(np.repeat(np.arange(len(span.lengths)), span.lengths)),
            pairs=pairs,
            labels={name: torch.from_numpy(classes) for name, classes in labels.items()},
        )

    def loss(
        self,
        layers: Sequence[Tensor],
        item_vectors_ID: Tensor,
        competes_I: Tensor | None,
        temperature: float,
        targets: Targets,
        generator: torch.Generator,
    ) -> LossSums:
        """Loss of a batch, as sums.

        Args:
            layers: hidden states `[T, D]` of each layer, normed, the last one last; earlier ones are read only
                where `layer_weight` is above 0.
            item_vectors_ID: item tower output, rows 0 and 1 included.
            competes_I: bool, the item rows of the softmax; None: all known ones.
            temperature: of the softmax, in cosine units.
            targets: of the same tokens, on the same device.
            generator: of sampled negatives, on the CPU.
        """
        config, last_TD = self.config, layers[-1]
        item_loss = self._item_loss(item_vectors_ID, competes_I, temperature, targets, generator)
        supervised = layers if config.layer_weight else layers[-1:]
        sums, count = [], last_TD.new_zeros((), dtype=torch.int64)
        intent_TC = None
        for hidden_TD in supervised:
            if self.intent is not None:
                hidden_TD, intent_TC = self.intent(hidden_TD)
            item_sum, count = item_loss(hidden_TD)
            sums.append(item_sum)
        total = layer_wise_loss(sums, config.layer_weight)
        parts = {"item": _part(sums[-1], count)}
        if len(sums) > 1:
            parts["layers"] = _part(torch.stack(sums[:-1]).mean(), count)
        if self.intent is not None and intent_TC is not None:
            intent_sum, intent_count = label_loss(intent_TC, targets.labels[self.intent.label.name])
            total = total + config.intent.weight * intent_sum
            parts["intent"] = _part(intent_sum, intent_count)
        if self.heads is not None:
            for name, (head_sum, head_count) in self.heads.loss(last_TD, targets.labels).items():
                total = total + config.head_weight * head_sum
                parts[f"head.{name}"] = _part(head_sum, head_count)
        return LossSums(total, parts, count)

    def item_hidden(self, hidden: Tensor) -> Tensor:
        """Hidden states `[.., D]` as items are compared with: with the expected intent in them, if there is one."""
        return hidden if self.intent is None else self.intent(hidden)[0]

    def _item_loss(
        self,
        item_vectors_ID: Tensor,
        competes_I: Tensor | None,
        temperature: float,
        targets: Targets,
        generator: torch.Generator,
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The loss of hidden states; one draw of negatives serves all layers."""
        config, pairs = self.config, targets.pairs
        if pairs is not None:
            return lambda hidden_TD: item_set_loss(hidden_TD, item_vectors_ID, pairs, temperature, competes_I)
        if config.softmax == "full":
            return lambda hidden_TD: next_item_loss(
                hidden_TD, item_vectors_ID, targets.item, temperature, competes_I, targets.weight
            )
        known_I = torch.arange(len(item_vectors_ID), device=item_vectors_ID.device) >= FIRST_KNOWN
        candidates_J = torch.nonzero(known_I if competes_I is None else known_I & competes_I).squeeze(1)
        # Not by setting items to 0: what a profile went to is no negative of its tokens, target or not.
        weights_T = torch.isin(targets.item, candidates_J).to(item_vectors_ID.dtype)
        weights_T = weights_T if targets.weight is None else weights_T * targets.weight
        share = {"uniform": 0.0, "in_batch": 1.0, "mixed": 0.5}[config.negatives]
        num_in_batch = int(config.num_negatives * share)
        negatives = draw_negatives(
            config.num_negatives - num_in_batch,
            num_in_batch,
            targets.item[weights_T > 0],
            candidates_J,
            generator,
        )
        return lambda hidden_TD: sampled_next_item_loss(
            hidden_TD,
            item_vectors_ID,
            targets.item,
            temperature,
            negatives.rows,
            negatives.log_count if config.log_q else None,
            targets.sequence if config.mask_profile else None,
            weights_T,
        )


def build_objective(config: ObjectiveConfig, tokenizer: Tokenizer, model: FoundationModel) -> Objective:
    """The objective of a configuration, for a model.

    Raises:
        ValueError: the configuration names what the schema lacks.
    """
    feature_rows = model.item_tower.feature_rows.numpy()
    return Objective(config, tokenizer, feature_rows, model.config.decoder.width)


def span_ends(span: Span) -> NDArray[np.int64]:
    """`[B]`, one past the last row of each sequence; 0 for an empty one."""
    last = np.cumsum(span.lengths) - 1
    has_rows = span.lengths > 0
    ends = np.zeros(len(span.lengths), dtype=np.int64)
    ends[has_rows] = span.rows[last[has_rows]] + 1
    return ends


def _part(total: Tensor, count: Tensor) -> Tensor:
    return torch.stack((total.detach().double(), count.double()))
