"""The foundation model as one would first write it in PyTorch: the baseline of `benchmarks.training`.

It imports nothing of ours. The architecture, the loss and the names of the weights are Marquee's; how it is computed
is not: every batch is padded to its longest window, every layer works on the whole grid, and the logits of all tokens
over all items are held at once.

Shapes: B windows, S longest window, L events of one window, F facet columns, I item rows (0 out of vocabulary, 1 start
marker), M valid tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

# Item rows below this are no items: they are no targets and don't compete.
FIRST_ITEM = 2


class PlainConfig(NamedTuple):
    """Sizes and settings, by Marquee's names."""

    width: int
    num_layers: int
    num_heads: int
    dropout: float
    temperature: float
    hidden_share: float  # of the items that a step treats as never seen
    context_share: float  # of the tokens shown without what is known as their event begins
    num_context_columns: int  # facet columns, from the first, that say it
    age_column: int | None  # facet column of the age of the item before; None: launches are unknown


class Window(NamedTuple):
    """One window of a profile, tokenised ahead of training."""

    facet_ids: Tensor  # [L, F] int64, rows of the facet table; 0 where there is no value
    item_ids: Tensor  # [L] int64, item row of the event before
    targets: Tensor  # [L] int64, item row of the event itself


@cache
def rotary_tables(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[S, K]` of positions 0 .. S - 1 (RoFormer, arXiv 2104.09864)."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(length), frequencies)
    return torch.cat((angles.cos(),) * 2, dim=-1), torch.cat((angles.sin(),) * 2, dim=-1)


def rotate(x_BHSK: Tensor) -> Tensor:
    """Turns pairs (i, i + K / 2) by their positions."""
    cos, sin = rotary_tables(*x_BHSK.shape[-2:])
    first, second = x_BHSK.chunk(2, dim=-1)
    return x_BHSK * cos + torch.cat((-second, first), dim=-1) * sin


class PlainAttention(nn.Module):
    """Causal multi-head attention over `[B, S, D]`; padding lies on the right, where no real token looks."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.project_in(x_BSD).chunk(3, dim=-1)
        )
        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.project_out(out.transpose(1, 2).flatten(2))


class PlainFeedForward(nn.Module):
    """Two linear layers, GELU between them, four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, 4 * width)
        self.project_out = nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        return self.project_out(F.gelu(self.project_in(x_BSD)))


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward, dropout on what each adds."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = PlainAttention(config.width, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward = PlainFeedForward(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD)))
        return x_BSD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BSD)))


class PlainDecoder(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        x_BSD = self.dropout(x_BSD)
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.final_norm(x_BSD)


class PlainItemTower(nn.Module):
    """gate * id + (1 - gate) * (mean of metadata embeddings + projected content).

    The gate of an item comes from how often it was seen in training, and how old it is.

    Args:
        weights: Marquee's state dict; the sizes are read off its `item_tower.` tensors.
        width: D.
    """

    feature_rows: Tensor  # [I, columns] int64, rows of the metadata table; 0 where an item has no value
    counts: Tensor  # [I] int64, training events
    age_rows: Tensor  # [I] int64, rows of the age gate as of the release
    content: Tensor  # [I, E] float32

    def __init__(self, weights: dict[str, Tensor], width: int) -> None:
        super().__init__()
        for name in ("feature_rows", "counts", "age_rows", "content"):
            self.register_buffer(name, weights[f"item_tower.{name}"])

        def num_rows(name: str) -> int:
            return len(weights[f"item_tower.{name}.weight"])

        self.id_embedding = nn.Embedding(num_rows("id_embedding"), width)
        self.unseen = nn.Parameter(torch.zeros(width))
        self.feature_embedding = nn.EmbeddingBag(
            num_rows("feature_embedding"), width, mode="mean", padding_idx=0
        )
        content_width = self.content.shape[1]
        self.content_projection = nn.Linear(content_width, width, bias=False) if content_width else None
        self.count_gate = nn.Embedding(num_rows("count_gate"), 1)
        self.age_gate = nn.Embedding(num_rows("age_gate"), 1)

    def forward(self, hidden: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What ids say `[I, D]`, what metadata say `[I, D]`, and the gate's part of the counts `[I, 1]`.

        Args:
            hidden: `[I]` bool, items to treat as never seen.
        """
        counts = self.counts if hidden is None else self.counts.masked_fill(hidden, 0)
        ids = torch.where((counts > 0)[:, None], self.id_embedding.weight, self.unseen)
        semantic = self.feature_embedding(self.feature_rows)
        if self.content_projection is not None:
            semantic = semantic + self.content_projection(self.content)
        # 0 for 0, then one bucket for each doubling.
        buckets = torch.where(counts > 0, counts.clamp_min(1).double().log2().floor().long() + 1, 0)
        return ids, semantic, self.count_gate(buckets.clamp_max(self.count_gate.num_embeddings - 1))

    def mix(self, ids: Tensor, semantic: Tensor, by_count: Tensor, age_rows: Tensor) -> Tensor:
        """Vectors `[..., D]` at the age that `age_rows` `[...]` stand for."""
        return semantic + torch.sigmoid(by_count + self.age_gate(age_rows)) * (ids - semantic)


class PlainModel(nn.Module):
    """Facets and the event before in, next-item loss out.

    Args:
        config: sizes and settings.
        weights: Marquee's state dict, which is copied; its names and shapes are this model's.

    Raises:
        RuntimeError: Marquee's model has a weight that this one lacks, or the other way round; it names them.
    """

    def __init__(self, config: PlainConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.facet_embedding = nn.EmbeddingBag(
            len(weights["facet_embedding.weight"]), config.width, mode="sum", padding_idx=0
        )
        self.item_tower = PlainItemTower(weights, config.width)
        self.decoder = PlainDecoder(config)
        self.load_state_dict(weights, strict=True)
        # A title without a training event can't have been the next one: it doesn't compete.
        competes = self.item_tower.counts > 0
        competes[:FIRST_ITEM] = False
        self.competing = torch.nonzero(competes).squeeze(1)
        self.class_of_item = torch.full((len(competes),), -1)
        self.class_of_item[self.competing] = torch.arange(len(self.competing))

    def loss(self, windows: Sequence[Window]) -> Tensor:
        """Mean cross entropy of the next item over all tokens whose target is a known item; a scalar, in nats."""
        facet_ids = pad_sequence([window.facet_ids for window in windows], batch_first=True)
        item_ids = pad_sequence([window.item_ids for window in windows], batch_first=True)
        targets = pad_sequence([window.targets for window in windows], batch_first=True)
        tower, hidden = self.item_tower, None
        if self.training and self.config.hidden_share:
            hidden = torch.rand(len(tower.counts)) < self.config.hidden_share
            hidden[:FIRST_ITEM] = False
        if self.training and self.config.context_share:
            masked = torch.rand(item_ids.shape) < self.config.context_share
            context = facet_ids[..., : self.config.num_context_columns]
            context.masked_fill_(masked[..., None], 0)
        ids, semantic, by_count = tower(hidden)
        vectors_ID = tower.mix(ids, semantic, by_count, tower.age_rows)
        if self.config.age_column is None:
            before_BSD = F.embedding(item_ids, vectors_ID)
        else:
            before_BSD = tower.mix(
                F.embedding(item_ids, ids),
                F.embedding(item_ids, semantic),
                F.embedding(item_ids, by_count),
                facet_ids[..., self.config.age_column],
            )
        facets_BSD = self.facet_embedding(facet_ids.flatten(0, 1)).view(*item_ids.shape, -1)
        x_BSD = facets_BSD + before_BSD
        hidden_BSD = self.decoder(x_BSD)
        classes = self.class_of_item[targets]
        valid = classes >= 0  # padding is item 0, which has no class
        # The temperature divides the hidden states: two passes over the logits less, and the same loss.
        queries_MD = F.normalize(hidden_BSD[valid], dim=-1, eps=1e-4) / self.config.temperature
        items = F.normalize(vectors_ID[self.competing], dim=-1, eps=1e-4)
        return F.cross_entropy(queries_MD @ items.T, classes[valid])


class PlainTrainer:
    """AdamW steps on random batches.

    Args:
        model: trained in place.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this norm.
    """

    def __init__(self, model: PlainModel, weight_decay: float, clip_norm: float) -> None:
        self.model = model
        self.clip_norm = clip_norm
        self.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay, fused=True)

    def step(self, windows: Sequence[Window], learning_rate: float) -> float:
        """One optimizer step; returns the loss before it."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self.model.loss(windows)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()
