"""The Triton kernel without a GPU: parity under the interpreter, and compilation for two architectures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("triton", reason="the kernel language is installed on development machines")


def test_matches_the_reference_under_the_interpreter(interpret: Callable[[str], None]) -> None:
    interpret("interaction")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("H", "E", "K"), [(256, 64, 4), (255, 63, 3), (1, 1, 1)])
def test_compiles_without_spills(
    spilled_bytes: Callable[..., int], architecture: int, H: int, E: int, K: int
) -> None:
    from serving.kernels.interaction import gpu

    constants = {**gpu.block_sizes(H, E), "H": H, "E": E, "K": K}
    types = {"offsets_ptr": "*i64"}
    assert spilled_bytes(gpu.first_layer_kernel, types, constants, architecture, gpu.LAUNCH) == 0
