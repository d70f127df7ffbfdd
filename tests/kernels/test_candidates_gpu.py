"""The Triton kernel of candidate scoring without a GPU: parity under the interpreter, and compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("triton", reason="the kernel language is installed on development machines")


def test_matches_the_model_under_the_interpreter(interpret: Callable[[str], None]) -> None:
    interpret("candidates")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("F", "D", "M", "head", "scaled"),
    [
        (2, 0, 256, True, False),
        (2, 256, 256, True, False),
        (2, 0, 256, True, True),
        (0, 0, 400, False, False),
    ],
)
def test_compiles_without_spills(
    spilled_bytes: Callable[..., int], architecture: int, F: int, D: int, M: int, head: bool, scaled: bool
) -> None:
    from serving.kernels.candidates import gpu

    H, E, K = 512, 256, 8
    constants = {"H": H, "E": E, "K": K, "F": F, "D": D, "M": M, "N": 2, "SCALED": scaled, "HAS_HEAD": head}
    constants |= {"RELU": True, "PANEL": gpu.PANEL, **gpu.block_sizes(K, M)}
    types = {"rows_ptr": "*i64", "offsets_ptr": "*i64"}
    if scaled:
        types |= {"x_table_ptr": "*i8", "e_table_ptr": "*i8"}
    assert spilled_bytes(gpu.score_kernel, types, constants, architecture, gpu.LAUNCH) == 0
