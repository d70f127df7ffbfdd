"""The profile half of one request as peers are given it: no padding, no gather indices, the top layer pruned.

Shapes: T tokens, F facet columns, L layers, D model width, H heads, K head width, D_profile vector width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.attention import CausalSelfAttention
from foundation.blocks.plain import PlainBlock
from foundation.decoder import Decoder
from foundation.model import unit
from foundation.rotary import Rotation, rotary, rotation
from ranker.arches.last_token_tower import LastTokenTower
from serving.split import ProfileGraph


class OneRequestProfile(nn.Module):
    """`ProfileGraph` specialised to one request: the same weights, products `[T, D]`, attention `[1, H, T, K]`.

    All positions, and so the rotations, are constants. Facet rows are embedded and summed without a bag: row 0, no
    value, holds zeros.

    Args:
        graph: of a plain decoder whose top layer is read at last tokens alone.
        most_tokens: longest request.
    """

    facets: Tensor
    items: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, graph: ProfileGraph, most_tokens: int) -> None:
        super().__init__()
        tower, items = graph.tower, graph.item_vectors()
        assert isinstance(tower, LastTokenTower) and items is not None
        foundation = tower.foundation
        assert isinstance(foundation.decoder, Decoder) and foundation.age_column is None
        self.num_kept = tower.crossing_layers
        self.register_buffer("facets", foundation.facet_embedding.weight)
        self.register_buffer("items", items.vectors)
        angles = rotation(torch.arange(most_tokens), foundation.config.decoder.head_width)
        self.register_buffer("cos", angles.cos)
        self.register_buffer("sin", angles.sin)
        *lower, top = (block for block in foundation.decoder.blocks if isinstance(block, PlainBlock))
        self.lower = nn.ModuleList(WholeLayer(block) for block in lower)
        self.top = TopLayer(top)
        self.final_norm = foundation.decoder.final_norm
        self.sparse, self.dense = tower.sparse, tower.dense

    def forward(
        self, facet_ids: Tensor, item_ids: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, ...]:
        """Vector `[1, D_profile]`, then keys and values `[T, H, K]` of the crossed layers, lowest first."""
        x_TD = F.embedding(facet_ids, self.facets).sum(1) + F.embedding(item_ids, self.items)
        num_tokens = facet_ids.shape[0]
        angles = Rotation(self.cos[:num_tokens], self.sin[:num_tokens])
        kept: list[tuple[Tensor, Tensor]] = []
        for layer in self.lower:
            x_TD, key_values = layer(x_TD, angles)
            kept.append(key_values)
        x_1D, key_values = self.top(x_TD, angles)
        kept.append(key_values)
        vector = torch.cat((unit(self.final_norm(x_1D)), self.sparse(sparse), self.dense(dense)), dim=1)
        layers: Sequence[tuple[Tensor, Tensor]] = kept[len(kept) - self.num_kept :]
        return (vector, *(tensor for layer in layers for tensor in layer))


class WholeLayer(nn.Module):
    """A plain block over all tokens of one sequence."""

    def __init__(self, block: PlainBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_TD: Tensor, angles: Rotation) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`[T, D]` to `[T, D]`, with keys and values `[T, H, K]`."""
        block, attention = self.block, self.block.attention
        heads, width = attention.num_heads, x_TD.shape[-1]
        qkv_TD = attention.project_in(block.attention_norm(x_TD))
        qk_TD, v_TD = qkv_TD.split((2 * width, width), dim=-1)
        q_THK, k_THK = rotary(qk_TD.unflatten(-1, (2 * heads, -1)), angles).chunk(2, dim=1)
        v_THK = v_TD.unflatten(-1, (heads, -1))
        q_1HTK, k_1HTK, v_1HTK = (x.transpose(0, 1).unsqueeze(0) for x in (q_THK, k_THK, v_THK))
        out_1HTK = F.scaled_dot_product_attention(q_1HTK, k_1HTK, v_1HTK, is_causal=True)
        x_TD = x_TD + attention.project_out(out_1HTK.squeeze(0).transpose(0, 1).flatten(1))
        return x_TD + block.feed_forward(block.feed_forward_norm(x_TD)), (k_THK, v_THK)


class TopLayer(nn.Module):
    """A plain block that computes keys and values of all tokens, and everything else of the last token alone."""

    def __init__(self, block: PlainBlock) -> None:
        super().__init__()
        self.block = block
        self.queries, self.key_values = query_and_key_values(block.attention)

    def forward(self, x_TD: Tensor, angles: Rotation) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`[T, D]` to `[1, D]`, with keys and values `[T, H, K]`."""
        block, heads = self.block, self.block.attention.num_heads
        normed_TD = block.attention_norm(x_TD)
        k_TD, v_TD = self.key_values(normed_TD).chunk(2, dim=-1)
        of_last = Rotation(angles.cos[-1:], angles.sin[-1:])
        q_1HK = rotary(self.queries(normed_TD[-1:]).unflatten(-1, (heads, -1)), of_last)
        k_THK, v_THK = rotary(k_TD.unflatten(-1, (heads, -1)), angles), v_TD.unflatten(-1, (heads, -1))
        q_1H1K, k_1HTK, v_1HTK = (x.transpose(0, 1).unsqueeze(0) for x in (q_1HK, k_THK, v_THK))
        out_1H1K = F.scaled_dot_product_attention(q_1H1K, k_1HTK, v_1HTK)
        x_1D = x_TD[-1:] + block.attention.project_out(out_1H1K.flatten(1))
        return x_1D + block.feed_forward(block.feed_forward_norm(x_1D)), (k_THK, v_THK)


def query_and_key_values(attention: CausalSelfAttention) -> tuple[nn.Linear, nn.Linear]:
    """The input projection as two layers: of queries, and of keys and values."""
    width = attention.project_in.in_features
    layers = []
    for weight in attention.project_in.weight.split((width, 2 * width)):
        layer = nn.Linear(width, weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        layers.append(layer)
    return layers[0], layers[1]
