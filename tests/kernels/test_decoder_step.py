"""The fused decoder on CPUs: parity with the model's own decoder on every path, alone and in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.attention_tiles import AttentionConfig
from foundation.branches import branches
from foundation.decoder import Decoder, DecoderConfig
from foundation.key_values import LayerKeyValues
from foundation.layout import Layout, layout
from serving.fused_decoder import FusedDecoder
from serving.no_fused_form import NoFusedForm

TOLERANCE = 5e-6  # of the largest value; of three layers' float32 sums in another order

LENGTHS = [[1], [5], [17], [0, 3, 0, 1], [1] * 20, [20, 300, 1, 0, 31], [257, 19]]
SIZES = [(64, 2), (40, 2), (12, 3), (28, 1), (128, 2), (6, 3)]  # width, heads
SIGHTS = [
    AttentionConfig(),
    AttentionConfig("sliding", window=5),
    AttentionConfig("sliding", window=1),
    AttentionConfig("sliding", window=270),
    AttentionConfig("prefix", window=7, prefix=3),
    AttentionConfig("prefix", window=30, prefix=40),
]


def _decoder(width: int, heads: int, sight: AttentionConfig, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(width, num_layers=3, num_heads=heads, attention=sight)).eval()
    for parameter in decoder.requires_grad_(False).parameters():
        parameter.normal_(std=0.3 if parameter.dim() == 1 else 1.5 / width**0.5)
    return decoder


def _tokens(lengths: list[int], width: int, seed: int = 1) -> tuple[Tensor, Layout]:
    x = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(seed))
    return x, layout(torch.tensor(lengths, dtype=torch.int64))


def _tensors(layers: tuple[LayerKeyValues, ...]) -> Iterator[Tensor]:
    return (tensor for of_layer in layers for tensor in of_layer)


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("nan_filled_memory")
def test_whole_sequences(
    error: Any, capability: Any, capabilities: list[str], size: tuple[int, int], sight: AttentionConfig
) -> None:
    decoder = _decoder(*size, sight)
    fused = FusedDecoder(decoder)
    for lengths in LENGTHS:
        x, where = _tokens(lengths, size[0])
        wanted = decoder.read(x, where, num_kept=2)
        for name in capabilities:
            with capability(name):
                found = fused.read(x, where, num_kept=2)
                last = fused.read_last(x, where, num_kept=1) if min(lengths) else None
            assert error(found.layers[0], wanted.layers[0]) <= TOLERANCE, (name, lengths)
            pairs = zip(_tensors(found.key_values), _tensors(wanted.key_values), strict=True)
            assert max(error(*pair) for pair in pairs) <= TOLERANCE, (name, lengths)
            if last is not None:
                assert torch.equal(last.layers[0], found.layers[0][where.last_index])
                assert torch.equal(last.key_values[0].values_THK, found.key_values[1].values_THK)


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("nan_filled_memory")
def test_continued_sequences_and_branches(
    error: Any, capability: Any, capabilities: list[str], size: tuple[int, int], sight: AttentionConfig
) -> None:
    decoder = _decoder(*size, sight)
    fused = FusedDecoder(decoder)
    for lengths, new in (([4], [2]), ([0, 7, 33, 1], [1, 0, 5, 8]), ([300, 0, 2], [2, 40, 1]), ([520], [30])):
        x, where = _tokens(lengths, size[0])
        y, new_where = _tokens(new, size[0], seed=2)
        _, stored = decoder.prefill(x, where)
        wanted, joined = decoder.extend(y, new_where, stored)
        forks, top = branches(stored.offsets, _offsets(new)), stored.layers[1:]
        wanted_branches = decoder.branch(y, forks, top)
        for name in capabilities:
            with capability(name):
                hidden, extended = fused.extend(y, new_where, stored)
                found = fused.branch(y, forks, top)
            assert error(hidden, wanted) <= TOLERANCE, (name, lengths)
            assert error(found, wanted_branches) <= TOLERANCE, (name, lengths)
            assert torch.equal(extended.offsets, joined.offsets)
            pairs = zip(_tensors(extended.layers), _tensors(joined.layers), strict=True)
            assert max(error(*pair) for pair in pairs) <= TOLERANCE, (name, lengths)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=7),
    # A norm over fewer than twelve values is too near a sign function to be compared.
    size=st.sampled_from([(12, 6), (12, 3), (12, 1), (32, 2), (36, 2), (18, 1), (96, 3), (48, 1), (64, 1)]),
    sight=st.sampled_from(SIGHTS),
    seed=st.integers(0, 2**31),
)
def test_reading_on_is_reading_whole(
    error: Any, capability: Any, capabilities: list[str],
    lengths: list[int], size: tuple[int, int], sight: AttentionConfig, seed: int,
) -> None:  # fmt: skip
    """Any cut of any batch, against the reference's one reading."""
    decoder = _decoder(*size, sight, seed)
    fused = FusedDecoder(decoder)
    x, where = _tokens(lengths, size[0], seed)
    wanted, stored = decoder.prefill(x, where)
    early = [(length * (seed % 7)) // 6 for length in lengths]
    late = [length - first for length, first in zip(lengths, early, strict=True)]
    is_early = where.positions < torch.tensor(early).repeat_interleave(where.lengths)
    _, earlier = decoder.prefill(x[is_early], layout(torch.tensor(early)))
    for name in capabilities:
        with capability(name):
            hidden, extended = fused.extend(x[~is_early], layout(torch.tensor(late)), earlier)
        assert error(hidden, wanted[~is_early]) <= TOLERANCE, name
        assert error(extended.layers[0].keys_THK, stored.layers[0].keys_THK) <= TOLERANCE, name


@pytest.mark.parametrize(
    "sight", [AttentionConfig(), AttentionConfig("prefix", window=20, prefix=3)], ids=str
)
def test_a_sequence_depends_neither_on_the_batch_nor_on_threads(
    capability: Any, capabilities: list[str], sight: AttentionConfig
) -> None:
    """Bit-identical, whether its rows go to one thread or its columns to several."""
    decoder = _decoder(64, 2, sight)
    fused = FusedDecoder(decoder)
    lengths, new = [40, 3, 300, 2, 1, 1], [1, 70, 2, 0, 5, 300]
    x, where = _tokens(lengths, 64)
    y, new_where = _tokens(new, 64, seed=2)
    ends, new_ends = _offsets(lengths).tolist(), _offsets(new).tolist()
    _, stored = decoder.prefill(x, where)
    before = torch.get_num_threads()
    for name in capabilities:
        with capability(name):
            torch.set_num_threads(1)
            whole = fused.read(x, where).layers[0]
            extended, _ = fused.extend(y, new_where, stored)
            forks = branches(stored.offsets, _offsets(new))
            branched = fused.branch(y, forks, stored.layers)
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                assert torch.equal(fused.read(x, where).layers[0], whole), (name, threads)
                assert torch.equal(fused.read_last(x, where).layers[0], whole[where.last_index])
                assert torch.equal(fused.extend(y, new_where, stored)[0], extended), (name, threads)
                assert torch.equal(fused.branch(y, forks, stored.layers), branched), (name, threads)
            for b, (first, last) in enumerate(pairwise(ends)):
                rows, own = slice(first, last), slice(new_ends[b], new_ends[b + 1])
                alone = _tokens([lengths[b]], 64)[1]
                assert torch.equal(fused.read(x[rows], alone).layers[0], whole[rows]), (name, b)
                layers = tuple(
                    LayerKeyValues(keys[rows], values[rows].contiguous()) for keys, values in stored.layers
                )
                part = stored._replace(layers=layers, offsets=torch.tensor([0, lengths[b]]))
                new_alone = _tokens([new[b]], 64)[1]
                assert torch.equal(fused.extend(y[own], new_alone, part)[0], extended[own]), (name, b)
                forks_alone = branches(part.offsets, torch.tensor([0, new[b]]))
                assert torch.equal(fused.branch(y[own], forks_alone, layers), branched[own]), (name, b)
            torch.set_num_threads(before)


def test_nan_stays_in_its_sequence_and_is_not_hidden(capability: Any, capabilities: list[str]) -> None:
    fused = FusedDecoder(_decoder(64, 2, AttentionConfig()))
    for lengths in ([3, 4, 2], [30, 40, 20]):
        x, where = _tokens(lengths, 64)
        x[lengths[0] + 1, 5] = float("nan")
        is_spoiled = torch.zeros(sum(lengths), dtype=torch.bool)
        is_spoiled[lengths[0] + 1 : lengths[0] + lengths[1]] = True
        for name in capabilities:
            with capability(name):
                out = fused.read(x, where).layers[0]
            assert out[is_spoiled].isnan().all(), name
            assert not out[: lengths[0]].isnan().any() and not out[sum(lengths[:2]) :].isnan().any(), name


def test_what_has_no_fused_form_is_said() -> None:
    for block in ("gated", "hstu"):
        with pytest.raises(NoFusedForm, match=f"decoder.block is '{block}'"):
            FusedDecoder(Decoder(DecoderConfig(block=block)))
    with pytest.raises(NoFusedForm, match="float32"):
        FusedDecoder(Decoder(DecoderConfig()).double())
    x, where = _tokens([3], 64)
    with pytest.raises(NoFusedForm, match="every layer"):
        FusedDecoder(Decoder(DecoderConfig())).read(x, where, every_layer=True)
