"""Crossing for the candidates of one request, as peers are given it: products over `[H, C, T]`, no gather indices.

Shapes: C candidates, T tokens of the request, D model width, H heads, K head width, m crossed layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.blocks.plain import PlainBlock
from foundation.decoder import Decoder
from foundation.rotary import Rotation, rotary, rotation
from serving.split import CrossedLayers, ItemRows


class OneRequestCrossing(nn.Module):
    """`CrossedLayers` specialised to one request: every candidate sits right after its last token.

    Args:
        crossed: the split's, of a plain decoder.
    """

    tokens: Tensor

    def __init__(self, crossed: CrossedLayers) -> None:
        super().__init__()
        assert isinstance(crossed.decoder, Decoder) and isinstance(crossed.crossing.token, ItemRows)
        self.register_buffer("tokens", crossed.crossing.token.table)
        blocks = (block for block in crossed.decoder.blocks if isinstance(block, PlainBlock))
        self.layers = nn.ModuleList(map(CrossedLayer, blocks))
        self.final_norm = crossed.decoder.final_norm
        self.head_width = crossed.decoder.config.head_width

    def forward(self, item_rows: Tensor, *key_values: Tensor) -> Tensor:
        """Item rows `[C]`, then keys and values `[T, H, K]` by layer, to crossed candidates `[C, D]`."""
        x_CD = F.embedding(item_rows, self.tokens)
        position = torch.full((1,), key_values[0].shape[0])
        angles = rotation(position, self.head_width)
        for layer, keys, values in zip(self.layers, key_values[::2], key_values[1::2], strict=True):
            x_CD = layer(x_CD, angles, keys, values)
        return self.final_norm(x_CD)


class CrossedLayer(nn.Module):
    """A plain block that candidates pass through: each attends to the request's tokens and itself."""

    def __init__(self, block: PlainBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_CD: Tensor, angles: Rotation, keys_THK: Tensor, values_THK: Tensor) -> Tensor:
        """`[C, D]` to `[C, D]`."""
        block, attention = self.block, self.block.attention
        heads, width = attention.num_heads, x_CD.shape[-1]
        qkv_CD = attention.project_in(block.attention_norm(x_CD))
        qk_CD, v_CD = qkv_CD.split((2 * width, width), dim=-1)
        q_HCK, k_HCK = rotary(qk_CD.unflatten(-1, (2 * heads, -1)), angles).transpose(0, 1).chunk(2)
        v_HCK = v_CD.unflatten(-1, (heads, -1)).transpose(0, 1)
        q_HCK = q_HCK * q_HCK.shape[-1] ** -0.5
        of_tokens_HCT = q_HCK @ keys_THK.permute(1, 2, 0)
        of_itself_HC1 = (q_HCK * k_HCK).sum(-1, keepdim=True)
        share_HCS = torch.cat((of_tokens_HCT, of_itself_HC1), dim=-1).softmax(-1)
        out_HCK = share_HCS[..., :-1] @ values_THK.transpose(0, 1) + share_HCS[..., -1:] * v_HCK
        x_CD = x_CD + attention.project_out(out_HCK.transpose(0, 1).flatten(1))
        return x_CD + block.feed_forward(block.feed_forward_norm(x_CD))
