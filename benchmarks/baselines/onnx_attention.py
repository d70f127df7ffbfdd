"""Decoder layers with ONNX Runtime's own attention operator, which its exporter for language models writes.

`com.microsoft::GroupQueryAttention` rotates queries and keys, and computes nothing above the diagonal: about an eighth
of the profile's time less than the exporter's products, mask and softmax.

Shapes: T tokens, D model width, H heads, K head width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.baselines.profile_graph import WholeLayer
from foundation.rotary import Rotation

_FLOAT = 1  # of onnx.TensorProto.DataType


class OnnxRuntimeLayer(WholeLayer):
    """`WholeLayer` for export alone: called in PyTorch, its attention gives zeros. Static shapes only."""

    def forward(self, x_TD: Tensor, angles: Rotation) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`[T, D]` to `[T, D]`, with keys and values `[T, H, K]`."""
        block, attention = self.block, self.block.attention
        (num_tokens, width), heads = x_TD.shape, attention.num_heads
        head_width = width // heads
        nothing = torch.zeros(1, heads, 0, head_width)
        kept_shape = (1, heads, num_tokens, head_width)
        out_1TD, k_1HTK, v_1HTK = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [
                attention.project_in(block.attention_norm(x_TD)).unsqueeze(0),
                None,
                None,
                nothing,
                nothing,
                torch.full((1,), num_tokens - 1, dtype=torch.int32),
                torch.full((1,), num_tokens, dtype=torch.int32),
                angles.cos[:, 0],
                angles.sin[:, 0],
            ],
            attrs={"num_heads": heads, "kv_num_heads": heads, "do_rotary": 1, "rotary_interleaved": 0},
            dtypes=[_FLOAT] * 3,
            shapes=[(1, num_tokens, width), kept_shape, kept_shape],
            version=1,
        )
        x_TD = x_TD + attention.project_out(out_1TD.squeeze(0))
        kept = (k_1HTK.squeeze(0).transpose(0, 1), v_1HTK.squeeze(0).transpose(0, 1))
        return x_TD + block.feed_forward(block.feed_forward_norm(x_TD)), kept


def with_own_attention(module: nn.Module) -> nn.Module:
    """The graph with these layers in the place of `WholeLayer`; weights are shared."""
    swapped = copy.copy(module)
    swapped._modules = dict(module._modules)
    for name, child in module.named_children():
        if isinstance(child, WholeLayer):
            swapped._modules[name] = OnnxRuntimeLayer(child.block)
        elif any(isinstance(each, WholeLayer) for each in child.modules()):
            swapped._modules[name] = with_own_attention(child)
    return swapped.eval()
