"""`attention_gpu` and `decoder_step_gpu` against attention and decoder of the model; run by `test_decoder_gpu.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.attention import tiled_attention
from foundation.attention_tiles import AttentionConfig, continued_tiles
from foundation.branches import branch_attention, branches, seen_by_branches
from foundation.decoder import Decoder, DecoderConfig
from foundation.key_values import LayerKeyValues, joining
from foundation.layout import layout
from serving.fused_decoder import FusedDecoder
from serving.kernels.attention.gpu import Tokens, attention_gpu
from serving.kernels.decoder.gpu import decoder_step_gpu

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
CONFIGS = [
    AttentionConfig(),
    AttentionConfig("sliding", window=4),
    AttentionConfig("prefix", window=3, prefix=2),
    AttentionConfig("prefix", window=40, prefix=9),
]
Lengths = list[tuple[int, int]]  # of each sequence, stored and new


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def tokens(offsets: Tensor, H: int, K: int) -> Tokens:
    keys, values = torch.randn(2, int(offsets[-1]), H, K)
    return Tokens(keys, values, offsets)


def check_attention(
    error: Callable[..., float], lengths: Lengths, H: int, K: int, config: AttentionConfig
) -> None:
    """All new tokens, the last new tokens alone, and branches, each against the model's own attention."""
    torch.manual_seed(0)
    stored = tokens(offsets_of([s for s, _ in lengths]), H, K)
    new = tokens(offsets_of([n for _, n in lengths]), H, K)
    q = torch.randn_like(new.keys)
    window = 0 if config.kind == "full" else config.window
    attend = partial(attention_gpu, window=window, num_prefix=config.num_prefix)
    new_lengths = new.offsets.diff()

    joined = joining(layout(new_lengths), stored.offsets)
    keys, values = (joined.join(*pair).double() for pair in zip(stored[:2], new[:2], strict=True))
    seen = continued_tiles(joined.new_layout, joined.key_layout, config)
    expected = tiled_attention(q.double(), keys, values, seen)
    assert error(attend(q, new.offsets, new, stored), expected) <= 1e-6

    last = new.offsets[1:][new_lengths > 0] - 1
    last_offsets = offsets_of((new_lengths > 0).long().tolist())
    assert error(attend(q[last], last_offsets, new, stored), expected[last]) <= 1e-6

    if q.numel() and stored.keys.numel():
        where = branches(stored.offsets, new.offsets)
        own, earlier = (LayerKeyValues(t.keys.double(), t.values.double()) for t in (new, stored))
        expected = branch_attention(q.double(), own, earlier, where, seen_by_branches(where, config))
        actual = attend(q, new.offsets, new, stored, branches=True)
        assert error(actual, expected) <= 1e-6


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(
    ("lengths", "H", "K"),
    [([(3, 2), (0, 1), (7, 0)], 2, 8), ([(40, 35), (1, 0), (0, 1), (5, 3)], 1, 24), ([(70, 5)], 1, 16)],
)
def test_attention(
    error: Callable[..., float], lengths: Lengths, H: int, K: int, config: AttentionConfig
) -> None:
    check_attention(error, lengths, H, K, config)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 40)), min_size=1, max_size=3),
    kind=st.sampled_from(["full", "sliding", "prefix"]),
    window=st.integers(1, 40),
    prefix=st.integers(1, 40),
)
def test_attention_of_any_lengths(
    error: Callable[..., float], lengths: Lengths, kind: str, window: int, prefix: int
) -> None:
    check_attention(error, lengths, 1, 6, AttentionConfig(kind, window, prefix))  # type: ignore[arg-type]


def test_attention_refuses_rows_that_are_not_whole() -> None:
    new = tokens(offsets_of([3]), 2, 8)
    with pytest.raises(ValueError, match="keys have shape"):
        attention_gpu(new.keys, new.offsets, new._replace(keys=new.keys.transpose(0, 1)), None)


@pytest.fixture
def on_gpu_path() -> Iterator[None]:
    """The op runs what a GPU would, on the CPU."""
    library = torch.library.Library("marquee", "IMPL")
    library.impl("decoder_step", decoder_step_gpu, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.fixture(params=CONFIGS[::2], ids=str)
def decoders(request: pytest.FixtureRequest) -> tuple[Decoder, FusedDecoder]:
    torch.manual_seed(0)
    config = DecoderConfig(width=20, num_layers=2, num_heads=2, dropout=0.0, attention=request.param)
    decoder = Decoder(config).eval()
    return decoder, FusedDecoder(decoder, num_positions=64)


@pytest.mark.usefixtures("on_gpu_path")
class TestDecoderStep:
    """`FusedDecoder` on the GPU's path against the decoder in float32, to the project's 1e-5."""

    @torch.no_grad()
    def test_reads(self, decoders: tuple[Decoder, FusedDecoder], error: Callable[..., float]) -> None:
        decoder, fused = decoders
        where = layout(torch.tensor([3, 0, 11, 1]))
        x = torch.randn(15, 20)
        expected, actual = (one.read(x, where, num_kept=2) for one in (decoder, fused))
        assert error(actual.layers[-1], expected.layers[-1]) <= 1e-5
        for got, wanted in zip(actual.key_values, expected.key_values, strict=True):
            assert max(error(*pair) for pair in zip(got, wanted, strict=True)) <= 1e-5

    @torch.no_grad()
    def test_reads_the_last_token_alone(
        self, decoders: tuple[Decoder, FusedDecoder], error: Callable[..., float]
    ) -> None:
        decoder, fused = decoders
        where = layout(torch.tensor([3, 11, 1]))
        x = torch.randn(15, 20)
        expected, actual = decoder.read(x, where, num_kept=1), fused.read_last(x, where, num_kept=1)
        assert error(actual.layers[-1], expected.layers[-1][where.last_index]) <= 1e-5
        pairs = zip(actual.key_values[0], expected.key_values[0], strict=True)
        assert max(error(*pair) for pair in pairs) <= 1e-5
        with pytest.raises(ValueError, match="no new token"):
            fused.read_last(x, layout(torch.tensor([15, 0])))

    @torch.no_grad()
    def test_extends(self, decoders: tuple[Decoder, FusedDecoder], error: Callable[..., float]) -> None:
        decoder, fused = decoders
        _, stored = decoder.prefill(torch.randn(12, 20), layout(torch.tensor([5, 0, 7])))
        new, x = layout(torch.tensor([1, 4, 0])), torch.randn(5, 20)
        (expected, all_of_it), (actual, kept) = decoder.extend(x, new, stored), fused.extend(x, new, stored)
        assert error(actual, expected) <= 1e-5
        assert error(kept.layers[1].keys_THK, all_of_it.layers[1].keys_THK) <= 1e-5

    @torch.no_grad()
    def test_branches(self, decoders: tuple[Decoder, FusedDecoder], error: Callable[..., float]) -> None:
        decoder, fused = decoders
        _, stored = decoder.prefill(torch.randn(12, 20), layout(torch.tensor([5, 0, 7])))
        where = branches(stored.offsets, torch.tensor([0, 3, 4, 9]))
        x = torch.randn(9, 20)
        for layers in (stored.layers, stored.layers[1:]):
            expected, actual = decoder.branch(x, where, layers), fused.branch(x, where, layers)
            assert error(actual, expected) <= 1e-5

    def test_refuses(self, decoders: tuple[Decoder, FusedDecoder]) -> None:
        _, fused = decoders
        with pytest.raises(ValueError, match="position 64; rotations are of 64"):
            fused.read(torch.randn(65, 20), layout(torch.tensor([65])))
        with pytest.raises(ValueError, match="x and rotations"):
            fused.read(torch.randn(3, 10), layout(torch.tensor([3])))
        fused.weight_2 = fused.get_buffer("weight_2").char()
        with pytest.raises(TypeError, match="int8; on a GPU"):
            fused.read(torch.randn(3, 20), layout(torch.tensor([3])))
