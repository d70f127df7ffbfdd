"""The decoder reads each sequence as if it were alone, and only its past."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.attention_tiles import AttentionConfig
from foundation.decoder import BlockKind, Decoder, DecoderConfig
from foundation.layout import Layout, layout


def _decoder(dropout: float = 0.0) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(width=12, num_layers=2, num_heads=3, dropout=dropout)).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder.eval()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any))
def test_a_ragged_batch_equals_each_sequence_alone(lengths):
    decoder = _decoder()
    x = torch.randn(sum(lengths), 12, dtype=torch.float64)
    with torch.no_grad():
        together = decoder(x, layout(torch.tensor(lengths)))
        for alone, own in zip(x.split(lengths), together.split(lengths), strict=True):
            if len(alone):
                torch.testing.assert_close(
                    decoder(alone, layout(torch.tensor([len(alone)]))), own, rtol=0, atol=1e-12
                )


def test_no_gradient_comes_from_a_later_token_or_another_sequence():
    decoder = _decoder()
    x = torch.randn(9, 12, dtype=torch.float64, requires_grad=True)
    batch = layout(torch.tensor([4, 5]))
    for row, visible in [(2, range(3)), (4, range(4, 5)), (7, range(4, 8))]:
        (gradient,) = torch.autograd.grad(decoder(x, batch)[row].square().sum() * torch.pi, x)
        seen = gradient.abs().sum(dim=1) > 0
        assert seen.nonzero().flatten().tolist() == list(visible)


def test_dropout_acts_in_training_only():
    decoder = _decoder(dropout=0.5)
    x = torch.randn(3, 12, dtype=torch.float64)
    batch = layout(torch.tensor([3]))
    assert torch.equal(decoder(x, batch), decoder(x, batch))
    decoder.train()
    assert not torch.equal(decoder(x, batch), decoder(x, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "decoder.num_layers must be >= 1, got 0"),
        ({"width": 10, "num_heads": 2}, "decoder.width must be a multiple of 2 \\* num_heads = 4"),
        ({"dropout": 1.0}, "decoder.dropout must be in \\[0, 1\\), got 1.0"),
        ({"hstu_window": 0}, "decoder.hstu_window must be >= 1, got 0"),
        ({"block": "moe"}, "decoder.block must be one of .*'gated'.*, got 'moe'"),
        ({"attention": {"kind": "sliding", "window": 0}}, "decoder.attention.window must be >= 1, got 0"),
    ],
)
def test_a_config_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**change)


def test_a_config_comes_back_from_json():
    config = DecoderConfig(32, 3, 4, 0.2, "gated", AttentionConfig("prefix", 20, 4), hstu_window=51)
    assert DecoderConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_config_of_an_older_release_has_plain_blocks_and_full_attention():
    older = {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    assert DecoderConfig.from_json(older) == DecoderConfig(16, 1, 2, 0.0, "plain", AttentionConfig("full"))


def test_a_config_of_a_newer_release_is_refused():
    with pytest.raises(ValueError, match=r"decoder has no field \['experts'\], only \['width'"):
        DecoderConfig.from_json({"width": 16, "experts": 4})


def test_the_names_of_a_plain_decoder_are_those_of_every_release():
    names = {name.removeprefix("blocks.1.") for name in _decoder().state_dict() if "blocks.0." not in name}
    assert names == {
        *(
            f"{norm}_norm.{part}"
            for norm in ("attention", "feed_forward", "final")
            for part in ("weight", "bias")
        ),
        *("attention.project_in.weight", "attention.project_out.weight"),
        *(f"feed_forward.project_{way}.{part}" for way in ("in", "out") for part in ("weight", "bias")),
    }


class _OfTensors(torch.nn.Module):
    """A decoder as an exported graph takes it: the layout's tensors one by one."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x, dense_index, packed_index, positions, last_index, times):
        batch = Layout(dense_index, packed_index, positions, last_index)
        return self.decoder(x, batch, times)


@pytest.mark.parametrize(("block", "kind"), [("plain", "prefix"), ("gated", "sliding"), ("hstu", "full")])
def test_one_exported_graph_takes_any_lengths(block: BlockKind, kind):
    torch.manual_seed(0)
    config = DecoderConfig(8, 1, 2, block=block, attention=AttentionConfig(kind, window=3, prefix=2))
    model = _OfTensors(Decoder(config).eval())

    def inputs(lengths):
        num_tokens = sum(lengths)
        return torch.randn(num_tokens, 8), *layout(torch.tensor(lengths)), torch.arange(num_tokens) * 77

    tokens, requests, longest = (torch.export.Dim(name, min=2, max=500) for name in "TBS")
    shapes = ({0: tokens}, {0: requests, 1: longest}, {0: tokens}, {0: tokens}, {0: requests}, {0: tokens})
    exported = torch.export.export(model, inputs([5, 20, 3]), dynamic_shapes=shapes).module()
    for lengths in ([2, 1], [40, 17, 0, 9]):
        given = inputs(lengths)
        torch.testing.assert_close(exported(*given), model(*given), rtol=0, atol=1e-5)
