"""Micro-benchmarks of the fused operators against their references, on this machine's processor.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width; T tokens,
D model width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.ceiling import tensor_bytes
from foundation.decoder import Decoder, DecoderConfig
from foundation.layout import layout
from ranker.arches.interaction import Interaction, InteractionConfig, Widths
from ranker.arches.interaction import interaction_first_layer as reference
from serving.fused_bags import FusedFacets
from serving.fused_candidates import FusedCandidates
from serving.fused_decoder import FusedDecoder
from serving.kernels.extension import cpu_capability
from serving.kernels.interaction.ops import interaction_first_layer as fused
from serving.split import ItemRows

_ROUNDS = 200
_TOLERANCE = 5e-6


@pytest.mark.parametrize(("B", "C"), [(1, 500), (8, 4000)])
def bench_interaction_first_layer(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], B: int, C: int
) -> None:
    """The fused first layer; the reference is timed interleaved with it, and their ratio is the claim."""
    H, E, K = 256, 64, 4
    random = torch.Generator().manual_seed(0)
    shapes = ((C, H), (C, E), (B, H), (B, K, E), (K, H))
    operands = [torch.randn(shape, generator=random) for shape in shapes]
    operands.append(torch.arange(B + 1) * (C // B))

    with torch.inference_mode():
        expected = reference(*operands)
        error = float((fused(*operands) - expected).abs().max() / expected.abs().max().clamp(min=1))
        assert error <= _TOLERANCE, "a kernel that computes something else is not timed"
        ratio = _interleaved_ratio(reference, fused, operands, _ROUNDS)
        benchmark(fused, *operands)

    floor_bytes = tensor_bytes([*operands, expected])
    path = cpu_capability()
    benchmark.extra_info.update(reference_over_fused=ratio, floor_bytes=floor_bytes, error=error, path=path)
    with capsys.disabled():
        print(
            f"\ninteraction_first_layer B={B} C={C} H={H} E={E} K={K}, {path}, {torch.get_num_threads()} threads: "
            f"at least {floor_bytes:,} bytes move; reference / fused = {ratio:.1f} (medians, interleaved)"
        )


@pytest.mark.parametrize("T", [256, 1024])
def bench_decoder_step(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], T: int) -> None:
    """The profile step read at the last token; the reference computes as little, and is timed interleaved."""
    D, L = 256, 4
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(D, num_layers=L, num_heads=4)).eval()
    fused_decoder = FusedDecoder(decoder)
    operands = (torch.randn(T, D), layout(torch.tensor([T])))

    with torch.inference_mode():
        expected = decoder.read_last(*operands).layers[0]
        found = fused_decoder.read_last(*operands).layers[0]
        error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        assert error <= _TOLERANCE, "a kernel that computes something else is not timed"
        ratio = _interleaved_ratio(decoder.read_last, fused_decoder.read_last, operands, rounds=20)
        benchmark(fused_decoder.read_last, *operands)

    # Products of 12 D² weights a layer with each token, in the last layer of keys and values alone; and of attention.
    floor_operations = 2 * T * D * D * (12 * (L - 1) + 2) + 2 * T * T * D * (L - 1)
    path = cpu_capability()
    benchmark.extra_info.update(
        reference_over_fused=ratio, floor_operations=floor_operations, error=error, path=path
    )
    with capsys.disabled():
        print(
            f"\ndecoder_step T={T} D={D} L={L}, {path}, {torch.get_num_threads()} threads: at least "
            f"{floor_operations:,} operations; reference / fused = {ratio:.1f} (medians, interleaved)"
        )


def bench_score_candidates(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """From item rows to logits for 500 candidates; the reference is timed interleaved."""
    C, H, E, K, F, items = 500, 512, 256, 8, 20, 4000
    torch.manual_seed(0)
    config = InteractionConfig(num_dots=K, dot_width=E, hidden_widths=(H, 256))
    plain = Interaction(config, Widths(300, 8, F, 0), num_tasks=2).eval()
    plain.set_submodule("candidate_projection", ItemRows(torch.randn(items, H)))
    plain.set_submodule("candidate_dots", ItemRows(torch.randn(items, E) * 0.1))
    fused_candidates = FusedCandidates(plain)
    operands = (torch.randn(1, 300), torch.randint(0, items, (C,)), torch.tensor([0, C]), torch.randn(C, F))

    with torch.inference_mode():
        expected = plain(*operands)
        error = float(
            (fused_candidates(*operands) - expected).abs().max() / expected.abs().max().clamp(min=1)
        )
        assert error <= _TOLERANCE, "a kernel that computes something else is not timed"
        ratio = _interleaved_ratio(plain, fused_candidates, operands, rounds=50)
        benchmark(fused_candidates, *operands)

    floor_operations = 2 * C * (H * 256 + (K + F) * H + E * K + 256 * 2)
    path = cpu_capability()
    benchmark.extra_info.update(
        reference_over_fused=ratio, floor_operations=floor_operations, error=error, path=path
    )
    with capsys.disabled():
        print(
            f"\nscore_candidates C={C} H={H} E={E} K={K}, {path}, {torch.get_num_threads()} threads: at least "
            f"{floor_operations:,} operations; reference / fused = {ratio:.1f} (medians, interleaved)"
        )


def bench_pool_bags(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Six facets of 256 tokens; the reference is PyTorch's own bag, timed interleaved."""
    T, W, D, rows = 256, 6, 256, 5000
    torch.manual_seed(0)
    facets = torch.nn.EmbeddingBag(rows, D, mode="sum", padding_idx=0)
    ids = torch.randint(0, rows, (T, W))
    fused_facets = FusedFacets(facets)

    with torch.inference_mode():
        error = float((fused_facets(ids) - facets(ids)).abs().max())
        assert error <= _TOLERANCE, "a kernel that computes something else is not timed"
        ratio = _interleaved_ratio(facets, fused_facets, (ids,), _ROUNDS)
        benchmark(fused_facets, ids)

    floor_bytes = (T * W + T) * D * 4
    benchmark.extra_info.update(reference_over_fused=ratio, floor_bytes=floor_bytes, error=error)
    with capsys.disabled():
        print(
            f"\npool_bags T={T} W={W} D={D}, {torch.get_num_threads()} threads: at least {floor_bytes:,} bytes move; "
            f"reference / fused = {ratio:.1f} (medians, interleaved)"
        )


def _interleaved_ratio(
    slow: Callable[..., object], fast: Callable[..., object], operands: Sequence[object], rounds: int
) -> float:
    """Median time of `slow` over that of `fast`, called in turn."""
    samples: dict[Callable[..., object], list[float]] = {slow: [], fast: []}
    for _ in range(rounds):
        for run, times in samples.items():
            begin = perf_counter()
            run(*operands)
            times.append(perf_counter() - begin)
    return median(samples[slow]) / median(samples[fast])
