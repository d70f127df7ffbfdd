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
from foundation.objectives.labels import LabelColumns, label_loss, resolve_label, token_labels
from foundation.objectives.layer_wise import layer_wise_loss
from foundation.objectives.multi_token import Pairs, event_pairs
from foundation.objectives.negatives import Negatives, draw_negatives
from foundation.objectives.signal import Signal
from foundation.objectives.softmax import ProfileItems, item_set_loss, next_item_loss, sampled_next_item_loss
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.training_batches import Batch
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import Span, span_rows

IN_BATCH_SHARE = {"uniform": 0.0, "in_batch": 1.0, "mixed": 0.5}
"""Of the negatives, by the configuration's word for them."""


class Targets(NamedTuple):
    """What the tokens of a batch are to predict."""

    item: Tensor  # [T] int64, item row of each token's event; below 2 is none
    weight: Tensor | None  # [T] float32, the event's signal; None: 1
    profiles: ProfileItems | None  # of a sampled softmax
    pairs: Pairs | None  # of multi-token prediction
    labels: dict[str, Tensor]  # [T, K] int64 classes by name, of heads and intent


class SampledItems(NamedTuple):
    """What a sampled softmax compares with, where not the vectors of all items are at hand."""

    negatives: Negatives  # from `Objective.negatives`
    rows: Tensor  # [U] int64, ascending, the item rows whose vectors are; targets and negatives among them


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
        model: whose hidden states and intent it is for.

    Raises:
        DataError: the configuration names what the schema lacks.
    """

    def __init__(self, config: ObjectiveConfig, tokenizer: Tokenizer, model: FoundationModel) -> None:
        super().__init__()
        self.config = config
        self._tokenizer = tokenizer
        self._feature_rows = model.item_tower.feature_rows.numpy()
        self.signal = Signal(config.signal, tokenizer) if config.signal.facet else None
        self.heads = build_heads(config.heads, tokenizer, model.config.decoder.width)
        self.intent = model.intent
        self._trains_layers = config.layer_weight > 0 and model.config.decoder.num_layers > 1
        label = intent_label(config, tokenizer)
        self._intent_label = "" if label is None else label.name
        of_heads = () if self.heads is None else self.heads.labels
        self._labels = tuple(dict.fromkeys((*of_heads, *(() if label is None else (label,)))))

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts of the loss."""
        heads = () if self.heads is None else (f"head.{label.name}" for label in self.heads.labels)
        layers, intent = ("layers",) * self._trains_layers, ("intent",) * (self.intent is not None)
        return ("item", *layers, *intent, *heads)

    def targets(self, events: EventIds, span: Span, profiles: Batch | None = None) -> Targets:
        """Targets of a batch's tokens.

        Args:
            events: looked-up events of the dataset.
            span: the batch's tokens; token t is of event `span.rows[t]` and predicts it.
            profiles: all events that training may see of each sequence's profile, for multi-token prediction and the
                masks of a sampled softmax; None: the sequence's own.
        """
        signal, rows = self.signal, span.rows
        labels = token_labels(self._labels, self._tokenizer, events, span, self._feature_rows)
        pairs = None
        if self.config.multi_token.horizon:
            ends = span_ends(span) if profiles is None else profiles.stops
            pairs = event_pairs(self.config.multi_token, events, span, ends, signal)
        masks = self.config.softmax == "sampled" and self.config.mask_profile
        return Targets(
            item=torch.from_numpy(events.item[rows]),
            weight=None if signal is None else torch.from_numpy(signal.weights(events, rows)),
            profiles=_profile_items(events, span, profiles) if masks else None,
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
        sampled: SampledItems | None = None,
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
            sampled: of a sampled softmax, where `item_vectors_ID` are those of its rows alone, `[U, D]`.
        """
        config, last_TD = self.config, layers[-1]
        item_loss = self._item_loss(item_vectors_ID, competes_I, temperature, targets, generator, sampled)
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
            intent_sum, intent_count = label_loss(intent_TC, targets.labels[self._intent_label])
            total = total + config.intent.weight * intent_sum
            parts["intent"] = _part(intent_sum, intent_count)
        if self.heads is not None:
            for name, (head_sum, head_count) in self.heads.loss(last_TD, targets.labels).items():
                total = total + config.head_weight * head_sum
                parts[f"head.{name}"] = _part(head_sum, head_count)
        return LossSums(total, parts, count)

    def negatives(
        self, targets: Targets, num_rows: int, competes_I: Tensor | None, generator: torch.Generator
    ) -> Negatives:
        """Draws the negatives of a sampled softmax ahead of `loss`, which otherwise draws its own.

        Args:
            targets, competes_I, generator: as `loss` takes them.
            num_rows: I.
        """
        config, items = self.config, targets.item
        candidates_J = torch.arange(FIRST_KNOWN, num_rows, device=items.device)
        candidates_J = candidates_J if competes_I is None else candidates_J[competes_I[FIRST_KNOWN:]]
        num_in_batch = int(config.num_negatives * IN_BATCH_SHARE[config.negatives])
        targets_M = items[_target_weights(targets, competes_I) > 0]
        num_uniform = config.num_negatives - num_in_batch
        return draw_negatives(num_uniform, num_in_batch, targets_M, candidates_J, generator)

    def _item_loss(
        self,
        item_vectors_ID: Tensor,
        competes_I: Tensor | None,
        temperature: float,
        targets: Targets,
        generator: torch.Generator,
        sampled: SampledItems | None,
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The loss of hidden states; one draw of negatives serves all layers."""
        config, pairs = self.config, targets.pairs
        if pairs is not None:
            return lambda hidden_TD: item_set_loss(hidden_TD, item_vectors_ID, pairs, temperature, competes_I)
        if config.softmax == "full":
            return lambda hidden_TD: next_item_loss(
                hidden_TD, item_vectors_ID, targets.item, temperature, competes_I, targets.weight
            )
        if sampled is None:
            negatives, rows = self.negatives(targets, len(item_vectors_ID), competes_I, generator), None
        else:
            negatives, rows = sampled
        weights_T = _target_weights(targets, competes_I)
        return lambda hidden_TD: sampled_next_item_loss(
            hidden_TD,
            item_vectors_ID,
            targets.item,
            temperature,
            negatives.rows,
            negatives.log_count if config.log_q else None,
            targets.profiles,
            weights_T,
            rows,
        )


def intent_label(config: ObjectiveConfig, tokenizer: Tokenizer) -> LabelColumns | None:
    """What the intent of a configuration is; None where it names none.

    Raises:
        DataError: the schema lacks it.
    """
    name = config.intent.label
    return resolve_label(name, tokenizer, "intent.label", own_request=True) if name else None


def _profile_items(events: EventIds, span: Span, profiles: Batch | None) -> ProfileItems:
    whole = span if profiles is None else span_rows(profiles.starts, profiles.stops)
    sequence_T, sequence_P = (
        torch.from_numpy(np.repeat(np.arange(len(each.lengths)), each.lengths)) for each in (span, whole)
    )
    return ProfileItems(sequence_T, sequence_P, torch.from_numpy(events.item[whole.rows]))


def _target_weights(targets: Targets, competes_I: Tensor | None) -> Tensor:
    """`[T]`: the signal, 0 where a token's item doesn't compete; the item stays, since it is no negative either."""
    competes = targets.item >= FIRST_KNOWN if competes_I is None else competes_I[targets.item]
    ones = (competes & (targets.item >= FIRST_KNOWN)).float()
    return ones if targets.weight is None else ones * targets.weight


def span_ends(span: Span) -> NDArray[np.int64]:
    """`[B]`, one past the last row of each sequence; 0 for an empty one."""
    last = np.cumsum(span.lengths) - 1
    has_rows = span.lengths > 0
    ends = np.zeros(len(span.lengths), dtype=np.int64)
    ends[has_rows] = span.rows[last[has_rows]] + 1
    return ends


def _part(total: Tensor, count: Tensor) -> Tensor:
    return torch.stack((total.detach().double(), count.double()))
