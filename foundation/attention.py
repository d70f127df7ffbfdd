"""Causal self-attention over packed sequences, with rotary positions.

Shapes: T packed tokens, B sequences, S longest sequence, D model width, H heads, K head width; N tiles of Q queries.

Linear layers see the T real tokens only. Attention alone is dense: two gathers, whose indices a `Layout` holds, lead
to `[B, H, S, K]` and back.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from foundation.attention_tiles import Tiles, to_dense, to_packed
from foundation.branches import branch_attention
from foundation.key_values import LayerKeyValues
from foundation.layout import Layout
from foundation.rotary import Rotation, rotary
from foundation.shared_inputs import SharedInputs


def causal_attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, layout: Layout) -> Tensor:
    """softmax(q·k / sqrt(K)) v within each sequence, over a token and those before it; `[T, H, K]`."""
    q_BHSK, k_BHSK, v_BHSK = (to_dense(x_THK, layout) for x_THK in (q_THK, k_THK, v_THK))
    out_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=True)
    return to_packed(out_BHSK, layout)


def tiled_attention(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, tiles: Tiles) -> Tensor:
    """softmax(q·k / sqrt(K)) v over the keys that `tiles` lets a query see; `[T, H, K]` of the queries."""
    q_BHNQK = tiles.queries(q_THK)
    heads_and_tiles = q_BHNQK.shape[1:3]
    visible = tiles.visible.unsqueeze(1).expand(-1, heads_and_tiles[0], -1, -1, -1).flatten(1, 2)
    # Tiles lie beside the heads, since the fused path takes four dimensions.
    out = F.scaled_dot_product_attention(
        q_BHNQK.flatten(1, 2),
        tiles.keys(k_THK).flatten(1, 2),
        tiles.keys(v_THK).flatten(1, 2),
        attn_mask=visible,
    )
    return tiles.packed(out.unflatten(1, heads_and_tiles))


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each token over itself and what it sees of the tokens before it.

    Args:
        width: D, a multiple of `num_heads`.
        num_heads: H; the head width D / H must be even, for rotary positions.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(
        self, x_TD: Tensor, shared: SharedInputs, stored: LayerKeyValues | None = None
    ) -> tuple[Tensor, LayerKeyValues]:
        """`[T, D]` to `[T, D]`, with the keys and values of all tokens: the stored and these; of branches, theirs.

        Where only some hidden states are read (`SharedInputs.query_rows`), to `[B, D]` of them.
        """
        q_THK, new = self._projected(x_TD, shared)
        if shared.branches is not None:
            assert stored is not None and shared.seen is not None
            out_THK = branch_attention(q_THK, new, stored, shared.branches, shared.seen)
            return self.project_out(out_THK.flatten(1)), new
        k_THK, v_THK = kept = shared.joined(new, stored)
        if shared.tiles is None:
            out_THK = causal_attention(q_THK, k_THK, v_THK, shared.layout)
        else:
            out_THK = tiled_attention(q_THK, k_THK, v_THK, shared.tiles)
        return self.project_out(out_THK.flatten(1)), kept

    def _projected(self, x_TD: Tensor, shared: SharedInputs) -> tuple[Tensor, LayerKeyValues]:
        """Queries of the tokens that are read, keys and values of all."""
        assert shared.angles is not None
        width = x_TD.shape[-1]
        if shared.query_rows is None:
            qk_TD, v_TD = self.project_in(x_TD).split((2 * width, width), dim=-1)
            qk_THK = rotary(qk_TD.unflatten(-1, (2 * self.num_heads, -1)), shared.angles)
            q_THK, k_THK = qk_THK.chunk(2, dim=1)
        else:
            k_TD, v_TD = self._outputs(x_TD, width, 3 * width).chunk(2, dim=-1)
            q_BD = self._outputs(shared.read_of(x_TD), 0, width)
            of_read = Rotation(*map(shared.read_of, shared.angles))
            q_THK = rotary(q_BD.unflatten(-1, (self.num_heads, -1)), of_read)
            k_THK = rotary(k_TD.unflatten(-1, (self.num_heads, -1)), shared.angles)
        return q_THK, LayerKeyValues(k_THK, v_TD.unflatten(-1, (self.num_heads, -1)))

    def _outputs(self, x_TD: Tensor, first: int, last: int) -> Tensor:
        """Outputs [first, last) of `project_in`, and no others where its weights can be cut."""
        if isinstance(self.project_in, nn.Linear):
            return F.linear(x_TD, self.project_in.weight[first:last])
        return self.project_in(x_TD)[..., first:last]
