"""Aggregation of layers and recent tokens against loops over each token's own past."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.aggregation import Aggregation, AggregationConfig
from foundation.layout import layout

WIDTH, NUM_LAYERS = 4, 3
ragged_lengths = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


def _aggregation(*fields) -> Aggregation:
    torch.manual_seed(0)
    aggregation = Aggregation(AggregationConfig(*fields), WIDTH, NUM_LAYERS).double()
    for parameter in aggregation.parameters():
        torch.nn.init.normal_(parameter)
    return aggregation


def _layers(num_tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(NUM_LAYERS, num_tokens, WIDTH, generator=generator, dtype=torch.float64))


def _naive(aggregation: Aggregation, layers: list[Tensor], lengths: list[int]) -> Tensor:
    config, hidden = aggregation.config, layers[-1]
    if aggregation.layer_mix is not None:
        exponentials = aggregation.layer_mix.weights.exp()
        hidden = sum(w * h for w, h in zip(exponentials, layers, strict=True)) / exponentials.sum()
    assert isinstance(hidden, Tensor)
    out = []
    for own in hidden.split(lengths):
        for t in range(len(own)):
            recent = [t - d for d in range(config.num_recent) if t - d >= 0]
            shares = torch.full((len(recent),), 1 / len(recent), dtype=own.dtype)
            if config.tokens == "last":
                recent, shares = [t], torch.ones(1, dtype=own.dtype)
            pool = aggregation.recent_attention
            if pool is not None:
                query = pool.query.weight @ own[t] / math.sqrt(WIDTH)
                shares = torch.stack([query @ own[s] + pool.distance_bias[t - s] for s in recent]).softmax(0)
            out.append(shares @ own[recent])
    return torch.stack(out)


@pytest.mark.parametrize("layers", ["last", "mix"])
@pytest.mark.parametrize("tokens", ["last", "mean", "attention"])
@settings(max_examples=15, deadline=None)
@given(lengths=ragged_lengths, num_recent=st.sampled_from([1, 2, 3, 20]))
def test_equals_a_loop_over_each_past_with_gradients(tokens, layers, lengths, num_recent):
    aggregation = _aggregation(tokens, num_recent, layers)
    hidden = [h.requires_grad_() for h in _layers(sum(lengths))]
    found = aggregation(hidden, layout(torch.tensor(lengths)))
    expected = _naive(aggregation, hidden, lengths)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    variables = (*hidden, *aggregation.parameters())
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    pairs = zip(
        torch.autograd.grad((found * weights).sum(), variables, materialize_grads=True),
        torch.autograd.grad((expected * weights).sum(), variables, materialize_grads=True),
        strict=True,
    )
    for gradient, wanted in pairs:
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tokens", ["mean", "attention"])
def test_no_token_reads_a_later_one_or_another_sequence(tokens):
    aggregation = _aggregation(tokens, 3, "mix")
    batch = layout(torch.tensor([4, 3]))
    layers = [h.requires_grad_() for h in _layers(7)]
    for row, visible in [(0, [0]), (3, [1, 2, 3]), (4, [4]), (5, [4, 5])]:
        for gradient in torch.autograd.grad(aggregation(layers, batch)[row].sum(), layers):
            assert (gradient.abs().sum(1) > 0).nonzero().flatten().tolist() == visible


def test_the_default_is_the_output_itself():
    aggregation = Aggregation(AggregationConfig(), WIDTH, NUM_LAYERS)
    layers = _layers(3)
    assert aggregation(layers, layout(torch.tensor([3]))) is layers[-1]
    assert not list(aggregation.parameters())


def test_attention_and_mix_start_as_means():
    layers = _layers(2)
    batch = layout(torch.tensor([2]))
    found = Aggregation(AggregationConfig("attention", 8, "mix"), WIDTH, NUM_LAYERS).double()(layers, batch)
    torch.testing.assert_close(found[1], torch.stack(layers).mean((0, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": "max"}, "aggregation.tokens must be one of .*'mean'.*, got 'max'"),
        ({"layers": "all"}, "aggregation.layers must be one of .*'mix'.*, got 'all'"),
        ({"num_recent": 0}, "aggregation.num_recent must be >= 1, got 0"),
    ],
)
def test_an_aggregation_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AggregationConfig(**change)


def test_a_mix_wants_every_layer():
    with pytest.raises(ValueError, match='"mix" is over 3 layers, got 1'):
        _aggregation("last", 1, "mix")(_layers(2)[:1], layout(torch.tensor([2])))
