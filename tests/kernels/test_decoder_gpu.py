"""Attention's Triton kernel without a GPU: parity under the interpreter, and compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from foundation.decoder import Decoder, DecoderConfig
from foundation.layout import layout
from serving.fused_decoder import FusedDecoder

pytest.importorskip("triton", reason="the kernel language is installed on development machines")


def test_matches_the_decoder_under_the_interpreter(interpret: Callable[[str], None]) -> None:
    interpret("decoder")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("K", "stored", "branches", "window"),
    [
        (64, True, False, 0),
        (64, False, False, 0),
        (64, True, True, 0),
        (64, True, False, 50),
        (128, True, False, 50),
    ],
)
def test_compiles_without_spills(
    spilled_bytes: Callable[..., int], architecture: int, K: int, stored: bool, branches: bool, window: int
) -> None:
    from serving.kernels.attention import gpu

    constants = {
        "H": 4,
        "K": K,
        "HAS_STORED": stored,
        "BRANCHES": branches,
        "WINDOW": window,
        "NUM_PREFIX": 8,
    }
    # As the decoder's step has them: rotated queries and keys side by side, values beside both.
    constants |= {"q_stride": 8 * K, "k_stride": 8 * K, "v_stride": 12 * K, **gpu.block_sizes(K)}
    types = {name: "*i64" for name in gpu.attention_kernel.arg_names if name.endswith("offsets_ptr")}
    types["scale"] = "fp32"
    assert spilled_bytes(gpu.attention_kernel, types, constants, architecture, gpu.LAUNCH) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_gpu_matches_cpu() -> None:
    fused = FusedDecoder(Decoder(DecoderConfig(width=64, num_layers=2, num_heads=2)).eval(), num_positions=64)
    where, x = layout(torch.tensor([3, 0, 40, 1])), torch.randn(44, 64)
    expected = fused(x, where)
    actual = fused.cuda()(x.cuda(), where.to("cuda"))
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)
