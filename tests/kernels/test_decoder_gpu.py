"""Attention's Triton kernel without a GPU: parity under the interpreter, and compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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
        (32, True, False, 0),
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
    constants |= gpu.block_sizes(K)
    types = {name: "*i64" for name in gpu.attention_kernel.arg_names if name.endswith("offsets_ptr")}
    types["scale"] = "fp32"
    assert spilled_bytes(gpu.attention_kernel, types, constants, architecture, gpu.LAUNCH) == 0
