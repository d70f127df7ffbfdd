"""A truncated decoder gives what the whole one has after as many blocks."""

from __future__ import annotations

import pytest
import torch

from foundation.decoder import Decoder, DecoderConfig
from foundation.layout import layout
from foundation.truncation import truncated, truncated_state


@pytest.mark.parametrize("block", ["plain", "gated", "hstu"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_its_output_is_the_layer_of_the_whole(block, num_layers):
    torch.manual_seed(0)
    config = DecoderConfig(width=8, num_layers=3, block=block, dropout=0.0)
    whole, shallow = Decoder(config), Decoder(truncated(config, num_layers))
    shallow.load_state_dict(truncated_state(whole.state_dict(), num_layers))
    x, times = torch.randn(5, 8), torch.arange(5) * 1000
    batch = layout(torch.tensor([2, 3]))
    with torch.no_grad():
        expected = whole.layers(x, batch, times)[num_layers - 1]
        assert torch.equal(shallow(x, batch, times), expected)


def test_names_keep_what_is_before_and_beside_the_blocks():
    names = [
        "decoder.blocks.0.a",
        "decoder.blocks.11.a",
        "decoder.final_norm.weight",
        "facet_embedding.weight",
    ]
    kept = truncated_state({name: torch.zeros(1) for name in names}, 2)
    assert list(kept) == [names[0], names[2], names[3]]


@pytest.mark.parametrize("num_layers", [0, 4])
def test_more_layers_than_there_are_is_refused(num_layers):
    with pytest.raises(ValueError, match=rf"num_layers must be in \[1, 3\], got {num_layers}"):
        truncated(DecoderConfig(num_layers=3), num_layers)
