"""A decoder that continues from stored keys and values against one that reads everything again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.attention_tiles import AttentionConfig
from foundation.decoder import BlockKind, Decoder, DecoderConfig
from foundation.layout import layout

ATTENTION = [
    AttentionConfig(),
    AttentionConfig("sliding", window=3),
    AttentionConfig("prefix", window=2, prefix=3),
]
WIDTH = 8


def _decoder(block: BlockKind, attention: AttentionConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(WIDTH, 2, 2, block=block, attention=attention, hstu_window=40)).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def _pick(jagged: Tensor, lengths: list[int], begin: list[int], end: list[int]) -> Tensor:
    parts = zip(jagged.split(lengths), begin, end, strict=True)
    return torch.cat([own[first:last] for own, first, last in parts])


sequence = st.tuples(st.integers(0, 25), st.integers(0, 8), st.integers(0, 8))


@pytest.mark.parametrize("attention", ATTENTION, ids=lambda config: config.kind)
@pytest.mark.parametrize("block", ["plain", "gated", "hstu"])
@settings(max_examples=25, deadline=None)
@given(sequences=st.lists(sequence, min_size=1, max_size=4))
def test_continued_twice_equals_read_again(block, attention, sequences):
    stored, first, second = (list(lengths) for lengths in zip(*sequences, strict=True))
    after = [a + b for a, b in zip(stored, first, strict=True)]
    lengths = [a + b for a, b in zip(after, second, strict=True)]
    decoder = _decoder(block, attention)
    x = torch.randn(sum(lengths), WIDTH)
    times = torch.randint(0, 10**9, (len(x),)).sort()[0]

    with torch.no_grad():
        whole = decoder(x, layout(torch.tensor(lengths)), times)
        nothing = [0] * len(lengths)
        hidden, kept = decoder.prefill(
            _pick(x, lengths, nothing, stored),
            layout(torch.tensor(stored)),
            _pick(times, lengths, nothing, stored),
        )
        torch.testing.assert_close(hidden, _pick(whole, lengths, nothing, stored), rtol=0, atol=1e-5)
        for new, begin, end in ((first, stored, after), (second, after, lengths)):
            new_times = _pick(times, lengths, begin, end)
            hidden, kept = decoder.extend(
                _pick(x, lengths, begin, end), layout(torch.tensor(new)), kept, new_times
            )
            torch.testing.assert_close(hidden, _pick(whole, lengths, begin, end), rtol=0, atol=1e-5)

        _, expected = decoder.prefill(x, layout(torch.tensor(lengths)), times)
    torch.testing.assert_close(kept.offsets, expected.offsets)
    for found, wanted in zip(kept.layers, expected.layers, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_keys_and_values_lie_sequence_by_sequence():
    decoder = _decoder("plain", ATTENTION[0])
    with torch.no_grad():
        _, kept = decoder.prefill(torch.randn(3, WIDTH), layout(torch.tensor([2, 0, 1])))
        _, kept = decoder.extend(torch.randn(3, WIDTH), layout(torch.tensor([1, 2, 0])), kept)
    assert kept.offsets.tolist() == [0, 3, 5, 6]
    assert [layer.keys_THK.shape for layer in kept.layers] == [(6, 2, 4)] * 2
    assert kept.times_T is None


def test_what_does_not_fit_together_is_refused():
    decoder = _decoder("plain", ATTENTION[0])
    x, one = torch.randn(1, WIDTH), layout(torch.tensor([1]))
    _, kept = decoder.prefill(x, one)
    with pytest.raises(ValueError, match="new tokens are of 2 sequences, stored keys and values of 1"):
        decoder.extend(x, layout(torch.tensor([1, 0])), kept)
    with pytest.raises(ValueError, match="are of 1 layers, the decoder has 2"):
        decoder.extend(x, one, kept._replace(layers=kept.layers[:1]))
    with pytest.raises(ValueError, match="read times_T"):
        _decoder("hstu", ATTENTION[0]).extend(x, one, kept)
    with pytest.raises(RuntimeError, match="eval mode only"):
        decoder.train().prefill(x, one)
