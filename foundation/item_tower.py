"""Item vectors: one tower for the input side of the decoder and for the output side.

Shapes: I item rows (0 out of vocabulary, 1 start marker, then the catalogue), U chosen rows, T packed tokens,
M metadata columns, E content width, D model width.

    id(i)        its own embedding; where i was never seen, or is hidden, one that all such items share
    semantic(i)  mean over its metadata values + projection of its content embedding
    vector(i)  = g · id(i) + (1 - g) · semantic(i),   g = sigmoid(by count(i) + by age(i))

The gate is one number: how far to trust the id, learned from how often the item was seen in training (counts
that a release fixes) and how old it is. A new title lives on its metadata; its id takes over as it is seen.
(Mixing by age: Netflix tech blog, March 2025; one shared id for hidden items: arXiv 2605.23312.)

On the output side an item's age is that at the release, so the vectors are one table. In a history token it is the
age as of that event, so a cached token never goes stale: `ItemVectors` holds what it takes to shift a row to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation.vocabulary import OUT_OF_VOCABULARY

INITIAL_STD = 0.02
NUM_COUNT_BUCKETS = 32
# Gates before training: a title never seen counts on its id for .12, one seen 100 times for .5, and so on.
INITIAL_GATE, INITIAL_GATE_SLOPE = -2.0, 0.3


class ItemFacts(NamedTuple):
    """What is known of every item and isn't learned; a release carries it. See `foundation.item_features`."""

    feature_rows: Tensor
    """`[I, M]` int64, rows of the joint metadata table; 0 where an item has no value."""
    counts: Tensor
    """`[I]` int64, training events of each item; of the start marker: training profiles."""
    age_rows: Tensor
    """`[I]` int64, joint facet rows of each item's age as of the release; 0 where its launch is unknown."""
    content: Tensor
    """`[I, E]` float32, content embeddings; E = 0 without them."""


class ItemVectors(NamedTuple):
    """Item vectors as of the release, and how they change with age."""

    vectors: Tensor
    """`[U, D]`, not normalised."""
    difference: Tensor
    """`[U, D]`, id - semantic: what moves with the gate."""
    count_logits: Tensor
    """`[U]`, the part of the gate, before its sigmoid, that depends on the count."""
    gates: Tensor
    """`[U]`, the gate as of the release."""
    age_logits: Tensor
    """`[joint facet rows]`, the part of the gate that depends on the age."""

    def at_event(self, item_ids: Tensor, age_rows: Tensor) -> Tensor:
        """Vectors of history tokens' items, aged as they were at their events; `[T, D]`.

        Args:
            item_ids: `[T]`, which of the U.
            age_rows: `[T]`, joint facet rows of the built-in facet `item_age`; 0 where there is none.
        """
        logits = self.count_logits.index_select(0, item_ids) + self.age_logits.index_select(0, age_rows)
        shift = torch.sigmoid(logits) - self.gates.index_select(0, item_ids)
        return torch.addcmul(
            self.vectors.index_select(0, item_ids),
            self.difference.index_select(0, item_ids),
            shift.unsqueeze(1),
        )


class ItemTower(nn.Module):
    """Vectors of items from id, metadata and content.

    Args:
        facts: kept as buffers, so that a saved model carries its catalogue.
        num_feature_rows: rows of the joint metadata table, row 0 (padding) included.
        num_facet_rows: rows of the joint facet table, which `age_rows` point into.
        width: D.
    """

    feature_rows: Tensor
    counts: Tensor
    age_rows: Tensor
    content: Tensor

    def __init__(self, facts: ItemFacts, num_feature_rows: int, num_facet_rows: int, width: int) -> None:
        super().__init__()
        _check_shapes(facts)
        for name, buffer in facts._asdict().items():
            self.register_buffer(name, buffer)
        self.id_embedding = nn.Embedding(facts.feature_rows.shape[0], width)
        self.unseen = nn.Parameter(torch.zeros(width))
        self.feature_embedding = nn.EmbeddingBag(num_feature_rows, width, mode="mean", padding_idx=0)
        content_width = facts.content.shape[1]
        self.content_projection = nn.Linear(content_width, width, bias=False) if content_width else None
        self.count_gate = nn.Embedding(NUM_COUNT_BUCKETS, 1)
        self.age_gate = nn.Embedding(num_facet_rows, 1)
        self.reset_parameters()

    def facts(self) -> ItemFacts:
        """What the tower was built from."""
        return ItemFacts(self.feature_rows, self.counts, self.age_rows, self.content)

    def reset_parameters(self) -> None:
        """Small normal values; the shared id starts at zero, so that an unknown item says nothing."""
        nn.init.normal_(self.id_embedding.weight, std=INITIAL_STD)
        nn.init.normal_(self.feature_embedding.weight, std=INITIAL_STD)
        if self.content_projection is not None:
            # Content embeddings have length one: projected, they start as long as a row of the other tables.
            nn.init.normal_(self.content_projection.weight, std=INITIAL_STD)
        nn.init.zeros_(self.unseen)
        nn.init.zeros_(self.age_gate.weight)
        with torch.no_grad():
            self.id_embedding.weight[OUT_OF_VOCABULARY].zero_()
            self.feature_embedding.weight[0].zero_()
            self.count_gate.weight[:, 0] = INITIAL_GATE + INITIAL_GATE_SLOPE * torch.arange(NUM_COUNT_BUCKETS)

    def forward(
        self, rows: Tensor | None = None, hidden: Tensor | None = None, ids: Tensor | None = None
    ) -> ItemVectors:
        """Vectors of the items `rows`, as of the release.

        Args:
            rows: `[U]` int64; None: all I.
            hidden: `[I]` bool, items to treat as never seen: training hides some, so that titles without a
                history of their own are scored well.
            ids: `[U, D]`, the rows' id embeddings where another table holds them (`foundation.sharded_items`).
        """
        counts = self.counts if hidden is None else self.counts.masked_fill(hidden, 0)
        feature_rows, age_rows, content = self.feature_rows, self.age_rows, self.content
        if ids is None:
            weight = self.id_embedding.weight
            ids = weight if rows is None else weight.index_select(0, rows)
        if rows is not None:
            counts, feature_rows = counts.index_select(0, rows), feature_rows.index_select(0, rows)
            age_rows, content = age_rows.index_select(0, rows), content.index_select(0, rows)
        ids = torch.where((counts > 0)[:, None], ids, self.unseen)
        semantic = self.feature_embedding(feature_rows)
        if self.content_projection is not None:
            semantic = semantic + self.content_projection(content)
        # A sum, not a view: a view of a weight keeps asking for gradients where none are recorded.
        age_logits = self.age_gate.weight.sum(dim=1)
        count_logits = self.count_gate.weight.squeeze(1).index_select(0, count_bucket(counts))
        gates = torch.sigmoid(count_logits + age_logits.index_select(0, age_rows))
        difference = ids - semantic
        vectors = torch.addcmul(semantic, difference, gates.unsqueeze(1))
        return ItemVectors(vectors, difference, count_logits, gates, age_logits)


def count_bucket(counts: Tensor) -> Tensor:
    """0 for 0, 1 for 1, then one bucket for each doubling; at most NUM_COUNT_BUCKETS - 1; int64, same shape."""
    doublings = torch.log2(counts.double().clamp_min(0.5)).floor().long()
    return (doublings + 1).clamp_max(NUM_COUNT_BUCKETS - 1)


def _check_shapes(facts: ItemFacts) -> None:
    if facts.feature_rows.dim() != 2 or facts.feature_rows.shape[1] < 1:
        raise ValueError(
            f"feature_rows must have shape [I, M] with M >= 1, got {tuple(facts.feature_rows.shape)}"
        )
    num_items = facts.feature_rows.shape[0]
    for name in ("counts", "age_rows"):
        shape = tuple(getattr(facts, name).shape)
        if shape != (num_items,):
            raise ValueError(f"{name} must have shape [{num_items}], as feature_rows has rows, got {shape}")
    if facts.content.dim() != 2 or facts.content.shape[0] != num_items:
        raise ValueError(f"content must have shape [{num_items}, E], got {tuple(facts.content.shape)}")
