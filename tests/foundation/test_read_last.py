"""The top layer computed at each sequence's last token alone: the same states, and the rest isn't computed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foundation.attention_tiles import AttentionConfig, Kind
from foundation.decoder import BlockKind, Decoder, DecoderConfig
from foundation.layout import Layout, layout

WIDTH, HEADS = 12, 3


def decoder_of(block: BlockKind, kind: Kind, num_layers: int = 2) -> Decoder:
    torch.manual_seed(0)
    attention = AttentionConfig(kind, window=3, prefix=2)
    decoder = Decoder(DecoderConfig(WIDTH, num_layers, HEADS, block=block, attention=attention)).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder.eval()


@pytest.mark.parametrize(
    ("block", "kind"), [*itertools.product(["plain", "gated"], ["full", "sliding", "prefix"])]
)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), num_layers=st.integers(1, 3))
def test_it_gives_what_a_whole_pass_gives_at_the_last_tokens(block, kind, lengths, num_layers):
    decoder = decoder_of(block, kind, num_layers)
    x, where = torch.randn(sum(lengths), WIDTH, dtype=torch.float64), layout(torch.tensor(lengths))
    with torch.no_grad():
        whole = decoder.read(x, where, num_kept=num_layers)
        for num_kept in range(num_layers + 1):
            last = decoder.read_last(x, where, num_kept)
            assert len(last.key_values) == num_kept
            expected = whole.layers[-1][where.last_index]
            torch.testing.assert_close(last.layers[-1], expected, rtol=0, atol=1e-12)
            for ours, theirs in zip(last.key_values, whole.key_values[num_layers - num_kept :], strict=True):
                torch.testing.assert_close(tuple(ours), tuple(theirs), rtol=0, atol=1e-12)


def flops(decoder: Decoder, lengths: list[int], num_kept: int = 0) -> int:
    x, where = torch.randn(sum(lengths), WIDTH, dtype=torch.float64), layout(torch.tensor(lengths))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder.read_last(x, where, num_kept)
    return sum(
        count
        for operator, count in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operator)
    )


@pytest.mark.parametrize(("block", "per_row"), [("plain", 2 + 8), ("gated", 2 + 8 + 2)])
def test_a_lone_layer_multiplies_all_tokens_for_keys_and_values_alone(block: BlockKind, per_row: int):
    """Of the last tokens, in D x D products: queries, output and feed-forward (gated: two gates beside)."""
    decoder, lengths = decoder_of(block, "full", num_layers=1), [30, 1, 17]
    assert flops(decoder, lengths) == flops(decoder, lengths, num_kept=1)
    assert flops(decoder, lengths) == 2 * WIDTH**2 * (2 * sum(lengths) + per_row * len(lengths))


def test_dropout_acts_in_training_only():
    decoder = Decoder(DecoderConfig(WIDTH, 1, HEADS, dropout=0.5))
    x, where = torch.randn(5, WIDTH), layout(torch.tensor([5]))

    def read() -> Tensor:
        return decoder.read_last(x, where).layers[-1]

    assert not torch.equal(read(), read())
    decoder.eval()
    assert torch.equal(read(), read())


def test_blocks_of_kind_hstu_are_refused():
    decoder = Decoder(DecoderConfig(WIDTH, 1, HEADS, block="hstu"))
    with pytest.raises(ValueError, match=r'decoder\.block is "hstu"'):
        decoder.read_last(torch.zeros(2, WIDTH), layout(torch.tensor([2])))


class _OfTensors(torch.nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, *where: Tensor) -> tuple[Tensor, ...]:
        passed = self.decoder.read_last(x, Layout(*where), num_kept=1)
        return (passed.layers[-1], *passed.key_values[0])


@pytest.mark.parametrize("kind", ["full", "sliding", "prefix"])
def test_one_exported_graph_takes_any_lengths(kind: Kind):
    model = _OfTensors(decoder_of("plain", kind))

    def inputs(lengths):
        where = layout(torch.tensor(lengths))
        return torch.randn(sum(lengths), WIDTH, dtype=torch.float64), *where

    tokens, requests, longest = (torch.export.Dim(name, min=1) for name in "TBS")
    shapes = ({0: tokens}, {0: requests, 1: longest}, {0: tokens}, {0: tokens}, {0: requests})
    exported = torch.export.export(model, inputs([5, 20, 3]), dynamic_shapes=(shapes[0], shapes[1:])).module()
    for lengths in ([1], [2, 1], [40, 17, 9]):
        given = inputs(lengths)
        torch.testing.assert_close(exported(*given), model(*given), rtol=0, atol=1e-12)
