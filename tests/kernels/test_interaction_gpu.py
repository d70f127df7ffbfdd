"""The Triton kernel without a GPU: parity under the interpreter, and compilation for two architectures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="the kernel language is installed on development machines")

# The interpreter is chosen when the module is first imported, so it gets a process of its own.
PARITY = """
import sys
import torch
from ranker.arches.interaction import interaction_first_layer as reference
from serving.kernels.interaction.gpu import first_layer_gpu

torch.use_deterministic_algorithms(True)  # torch.empty is NaN: an unwritten element is seen
cases = [([0, 3, 3, 10], 256, 64, 4), ([0, 1], 37, 19, 3), ([0, 0, 70, 70], 300, 70, 1),
         ([0, 2, 9], 16, 8, 0), ([0, 0, 0, 5, 5], 1, 1, 1), ([0, 5, 11, 12, 12, 30, 31], 65, 33, 2)]
for bounds, H, E, K in cases:
    C, B = bounds[-1], len(bounds) - 1
    random = torch.Generator().manual_seed(C)
    operands = [torch.randn(s, generator=random) for s in ((C, H), (C, E), (B, H), (B, K, E), (K, H))]
    for dtype in (torch.int32, torch.int64):
        offsets = torch.tensor(bounds, dtype=dtype)
        expected = reference(*(o.double() for o in operands), offsets)
        difference = (first_layer_gpu(*operands, offsets).double() - expected).abs().max()
        bound = 5e-6 * max(1.0, float(expected.abs().max()))
        assert difference <= bound, (bounds, H, E, K, dtype, difference)
        for empty in ([0], [0, 0]):
            B = len(empty) - 1
            shapes = ((0, H), (0, E), (B, H), (B, K, E), (K, H))
            out = first_layer_gpu(*(torch.zeros(s) for s in shapes), torch.tensor(empty, dtype=dtype))
            assert out.shape == (0, H)
nan = torch.full((1, 4), float("nan"))
out = first_layer_gpu(nan, nan[:, :1].clone(), nan, nan[:, None, :1].clone(), nan, torch.tensor([0, 1]))
assert out.isnan().all()
wrong = [(0, nan.double(), TypeError), (1, nan[:0], ValueError), (5, torch.tensor([0.0, 1.0]), TypeError)]
for at, operand, kind in wrong:
    operands = [nan, nan[:, :1].clone(), nan, nan[:, None, :1].clone(), nan, torch.tensor([0, 1])]
    operands[at] = operand
    try:
        first_layer_gpu(*operands)
    except kind as error:
        assert "must be" in str(error)
    else:
        sys.exit(f"operand {at} was not refused")
"""


def test_matches_the_reference_under_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "error:::serving", "-c", PARITY]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("H", "E", "K"), [(256, 64, 4), (255, 63, 3), (1, 1, 1)])
def test_compiles_without_spills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: int, H: int, E: int, K: int
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from serving.kernels.interaction import gpu

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {**gpu.block_sizes(H, E), "H": H, "E": E, "K": K}
    pointers = ["x_ptr", "e_ptr", "p_ptr", "q_ptr", "w_ptr", "offsets_ptr", "out_ptr"]
    signature = dict.fromkeys(pointers, "*fp32") | {"offsets_ptr": "*i64", "C": "i32", "B": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    # Every allocation of torch is aligned, so its launcher specialises the pointers on that.
    aligned = {(at,): [["tt.divisibility", 16]] for at in range(len(pointers))}
    source = ASTSource(gpu.first_layer_kernel, signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": gpu.NUM_WARPS})

    ptx = tmp_path / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    name = next(word for word in compiled.asm["ptx"].split() if word.startswith("sm_"))
    report = subprocess.run(
        [ptxas, "-v", f"--gpu-name={name}", ptx, "-o", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
