"""Loading the extension, and choosing a path by environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from serving.kernels.extension import cpu_capability, load_extension


def test_the_environment_chooses_the_path(monkeypatch: pytest.MonkeyPatch, capabilities: list[str]) -> None:
    if not os.environ.get("MARQUEE_CPU_CAPABILITY"):
        assert cpu_capability() == capabilities[-1]
    for name in capabilities:
        monkeypatch.setenv("MARQUEE_CPU_CAPABILITY", name)
        assert cpu_capability() == name
    monkeypatch.delenv("MARQUEE_CPU_CAPABILITY")
    best = cpu_capability()
    monkeypatch.setenv("MARQUEE_CPU_CAPABILITY", "")
    assert cpu_capability() == best


def test_an_unknown_path_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARQUEE_CPU_CAPABILITY", "sse9")
    message = "MARQUEE_CPU_CAPABILITY is 'sse9'; it must be baseline, avx2, avx512, avx512_vnni or amx"
    with pytest.raises(ValueError, match=message):
        cpu_capability()


def test_a_path_beyond_the_processor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARQUEE_CPU_CAPABILITY", raising=False)
    best = cpu_capability()
    if best == "amx":
        pytest.skip("this processor has every path")
    monkeypatch.setenv("MARQUEE_CPU_CAPABILITY", "amx")
    with pytest.raises(ValueError, match=f"this processor goes up to {best}"):
        cpu_capability()


def test_a_missing_extension_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serving.kernels._C", None)
    with pytest.raises(ImportError, match="make setup"):
        load_extension()


def test_operators_import_without_the_kernel_language() -> None:
    """A serving machine has no Triton kernel compiler; the operators load and run without it."""
    program = """
import sys
sys.modules["triton"] = None
import torch
from serving.kernels.interaction.ops import interaction_first_layer
out = interaction_first_layer(
    torch.ones(2, 8), torch.ones(2, 4), torch.ones(1, 8), torch.ones(1, 3, 4), torch.ones(3, 8), torch.tensor([0, 2])
)
assert out.tolist() == [[14.0] * 8] * 2
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu(make_operands) -> None:
    operands = make_operands([3, 0, 61], 256, 64, 4)
    on_gpu = torch.ops.marquee.interaction_first_layer(*(operand.cuda() for operand in operands))
    torch.testing.assert_close(on_gpu.cpu(), torch.ops.marquee.interaction_first_layer(*operands))
