"""The Triton kernel of candidate scoring without a GPU: parity under the interpreter, and compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from serving.kernels.candidates.ops import ItemTables, Weights, score_candidates
from serving.kernels.linear.panels import pack

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu() -> None:
    C, B, H, E, K, N, items = 70, 2, 64, 32, 4, 2, 50

    def logits(device: str) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device)

        layers = [pack(normal(48, H)), normal(48), pack(normal(N, 48)), normal(N)]
        return score_candidates(
            torch.arange(C, device=device) % items,
            torch.tensor([0, 33, C], device=device),
            ItemTables(normal(items, H), normal(items, E)),
            (normal(B, H), normal(B, K, E)),
            (None, None),
            Weights(normal(K, H), layers, num_tasks=N),
        ).cpu()

    expected = logits("cpu")
    assert (logits("cuda") - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_layers_without_a_weight_or_a_bias_are_an_error(number: int) -> None:
    from serving.kernels.candidates.gpu import score_candidates_gpu

    p, q, table = torch.zeros(1, 16), torch.zeros(1, 2, 4), torch.zeros(3, 16)
    rows, offsets = torch.tensor([0]), torch.tensor([0, 1])
    weights = [torch.zeros(1, 16, 16)] * number
    with pytest.raises(ValueError, match=f"there are {number} weights"):
        score_candidates_gpu(
            rows, offsets, table, table[:, :4], [], p, q, torch.zeros(2, 16), None, None, weights, [], 1
        )
