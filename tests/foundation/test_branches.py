"""Branches against sequences that are each read again with one token more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.attention_tiles import AttentionConfig
from foundation.branches import branches
from foundation.decoder import BlockKind, Decoder, DecoderConfig
from foundation.layout import layout

ATTENTION = [
    AttentionConfig(),
    AttentionConfig("sliding", window=3),
    AttentionConfig("prefix", window=2, prefix=3),
]
WIDTH, LAYERS = 8, 3


def _decoder(block: BlockKind = "plain", attention: AttentionConfig = ATTENTION[0]) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(WIDTH, LAYERS, 2, block=block, attention=attention))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.double().eval()


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _appended(decoder: Decoder, x_TD: Tensor, branch_D: Tensor, num_layers: int) -> Tensor:
    """Plainly: one sequence, its states below the top layers with the branch at their end, read by these layers."""
    one = layout(torch.tensor([len(x_TD)]))
    bottom = Decoder(decoder.config).double().eval()
    bottom.load_state_dict(decoder.state_dict())
    top, bottom.blocks = bottom.blocks[LAYERS - num_layers :], bottom.blocks[: LAYERS - num_layers]
    shared = bottom._shared_inputs(one, None)
    for block in bottom.blocks:
        x_TD, _ = block(x_TD, shared)
    longer = layout(torch.tensor([len(x_TD) + 1]))
    x_TD, shared = torch.cat((x_TD, branch_D[None])), bottom._shared_inputs(longer, None)
    for block in top:
        x_TD, _ = block(x_TD, shared)
    return decoder.final_norm(x_TD)[-1]


@pytest.mark.parametrize("attention", ATTENTION, ids=lambda config: config.kind)
@pytest.mark.parametrize("block", ["plain", "gated"])
@settings(max_examples=20, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=4),
    num_layers=st.integers(1, LAYERS),
)
def test_a_branch_is_a_token_appended_to_its_sequence_alone(block, attention, sequences, num_layers):
    lengths, numbers = (list(column) for column in zip(*sequences, strict=True))
    decoder = _decoder(block, attention)
    x_TD, x_CD = (torch.randn(sum(sizes), WIDTH, dtype=torch.double) for sizes in (lengths, numbers))
    with torch.no_grad():
        kept = decoder.read(x_TD, layout(torch.tensor(lengths)), num_kept=num_layers).key_values
        found = decoder.branch(x_CD, branches(_offsets(lengths), _offsets(numbers)), kept)
        expected = [
            _appended(decoder, own_TD, branch_D, num_layers)
            for own_TD, own_CD in zip(x_TD.split(lengths), x_CD.split(numbers), strict=True)
            for branch_D in own_CD
        ]
    assert found.shape == x_CD.shape
    for one, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(one, plain, rtol=0, atol=1e-12)


def test_a_pass_gives_what_forward_and_layers_give():
    decoder, lengths = _decoder(), layout(torch.tensor([3, 4]))
    x_TD = torch.randn(7, WIDTH, dtype=torch.double)
    passed = decoder.read(x_TD, lengths, every_layer=True, num_kept=2)
    assert all(map(torch.equal, passed.layers, decoder.layers(x_TD, lengths)))
    assert torch.equal(passed.layers[-1], decoder(x_TD, lengths))
    _, whole = decoder.prefill(x_TD, lengths)
    assert [torch.equal(a, b) for own, kept in zip(passed.key_values, whole.layers[1:], strict=True)
            for a, b in zip(own, kept, strict=True)] == [True] * 4  # fmt: skip
    assert decoder.read(x_TD, lengths).key_values == ()


def test_gradients_reach_the_stored_tokens_of_the_own_sequence_only():
    decoder, lengths = _decoder("gated"), [3, 4, 2]
    x_TD = torch.randn(9, WIDTH, dtype=torch.double, requires_grad=True)
    x_CD = torch.randn(4, WIDTH, dtype=torch.double, requires_grad=True)
    kept = decoder.read(x_TD, layout(torch.tensor(lengths)), num_kept=2).key_values
    hidden = decoder.branch(x_CD, branches(_offsets(lengths), _offsets([1, 3, 0])), kept)
    own, stored = torch.autograd.grad(hidden[2].square().sum() * torch.pi, (x_CD, x_TD), retain_graph=True)
    assert (own.abs().sum(1) > 0).nonzero().flatten().tolist() == [2]
    assert (stored.abs().sum(1) > 0).nonzero().flatten().tolist() == [3, 4, 5, 6]
    hidden.square().sum().backward()
    assert x_TD.grad is not None and not x_TD.grad[7:].any(), "no branch continues the last sequence"
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in decoder.parameters())


def test_an_empty_sequence_leaves_a_branch_to_itself_without_a_nan():
    decoder, offsets = _decoder(), torch.tensor([0, 0])
    kept = decoder.read(torch.empty(0, WIDTH, dtype=torch.double), layout(torch.tensor([0])), num_kept=1)
    x_CD = torch.randn(2, WIDTH, dtype=torch.double, requires_grad=True)
    hidden = decoder.branch(x_CD, branches(offsets, torch.tensor([0, 2])), kept.key_values)
    hidden.square().sum().backward()
    assert x_CD.grad is not None and torch.isfinite(hidden).all() and torch.isfinite(x_CD.grad).all()


def test_what_does_not_fit_together_is_refused():
    decoder = _decoder()
    x_TD, one = torch.randn(2, WIDTH, dtype=torch.double), torch.tensor([0, 2])
    kept = decoder.read(x_TD, layout(torch.tensor([2])), num_kept=1).key_values
    with pytest.raises(ValueError, match="branches are of 2 sequences, stored keys and values of 1"):
        branches(one, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="are of 4 layers; it must be 1 to 3, the"):
        decoder.branch(x_TD, branches(one, one), kept * 4)
    with pytest.raises(ValueError, match=r'decoder\.block is "hstu"; branches need blocks'):
        _decoder("hstu").branch(x_TD, branches(one, one), kept)
