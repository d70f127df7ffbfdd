"""Packed causal attention, full and tiled, against plain masked attention; the properties of rotary positions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.attention import CausalSelfAttention, causal_attention, tiled_attention
from foundation.attention_tiles import AttentionConfig, tiles
from foundation.layout import layout
from foundation.rotary import rotary, rotation
from foundation.shared_inputs import SharedInputs

FULL = AttentionConfig()


def _reference(q, k, v, lengths, config=FULL):
    """One sequence at a time, with an explicit mask."""
    outputs = []
    for q_SHK, k_SHK, v_SHK in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("qhk,shk->hqs", q_SHK, k_SHK) / math.sqrt(q.shape[-1])
        hidden = torch.tensor(
            [[not _sees(i, j, config) for j in range(len(q_SHK))] for i in range(len(q_SHK))],
            dtype=torch.bool,
        )
        probs = scores.masked_fill(hidden.view(scores.shape[-2:]), float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqs,shk->qhk", probs, v_SHK))
    return torch.cat(outputs)


def _sees(query: int, key: int, config: AttentionConfig) -> bool:
    if config.kind == "full":
        return key <= query
    in_prefix = config.kind == "prefix" and key < config.prefix
    return key <= query and (key > query - config.window or in_prefix)


def _qkv(num_tokens, num_heads, head_width):
    generator = torch.Generator().manual_seed(0)
    shape = (3, num_tokens, num_heads, head_width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).unbind()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any),
    num_heads=st.integers(1, 3),
    half_width=st.integers(1, 4),
)
def test_equals_masked_attention_and_its_gradients(lengths, num_heads, half_width):
    q, k, v = (x.requires_grad_() for x in _qkv(sum(lengths), num_heads, 2 * half_width))
    out = causal_attention(q, k, v, layout(torch.tensor(lengths)))
    expected = _reference(q, k, v, lengths)
    _assert_same_with_gradients(out, expected, (q, k, v))


def _assert_same_with_gradients(out, expected, inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad((out * weights).sum(), inputs)
    for gradient, wanted in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 16, 17, 23, 33, 50]), min_size=1, max_size=3).filter(any),
    kind=st.sampled_from(["full", "sliding", "prefix"]),
    window=st.sampled_from([1, 2, 3, 16, 17, 18, 21, 60]),
    prefix=st.sampled_from([1, 2, 15, 20, 60]),
)
def test_tiles_equal_masked_attention_and_its_gradients(lengths, kind, window, prefix):
    config = AttentionConfig(kind, window, prefix)
    q, k, v = (x.requires_grad_() for x in _qkv(sum(lengths), 2, 4))
    out = tiled_attention(q, k, v, tiles(layout(torch.tensor(lengths)), config))
    _assert_same_with_gradients(out, _reference(q, k, v, lengths, config), (q, k, v))


@pytest.mark.parametrize(("kind", "num_keys"), [("sliding", 2 * 31), ("prefix", 4 + 2 * 31)])
def test_a_query_meets_no_more_keys_however_long_the_sequence(kind, num_keys):
    config = AttentionConfig(kind, window=32, prefix=4)
    for length in (100, 1000):
        cut = tiles(layout(torch.tensor([length, 7])), config)
        assert cut.visible.shape == (1, math.ceil(length / 31), 31, num_keys)
        assert cut.keys(torch.zeros(length + 7, 2, 6)).shape == (2, 2, math.ceil(length / 31), num_keys, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "local"}, "decoder.attention.kind must be one of .*'sliding'.*, got 'local'"),
        ({"window": 0}, "decoder.attention.window must be >= 1, got 0"),
        ({"prefix": 0}, "decoder.attention.prefix must be >= 1, got 0"),
    ],
)
def test_an_attention_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**change)


def test_what_row_zero_holds_never_comes_through_the_padding():
    lengths = torch.tensor([1, 3, 2])
    q, k, v = _qkv(6, 2, 4)
    before = causal_attention(q, k, v, layout(lengths))
    for x in (q, k, v):
        x[0] = 1e6
    after = causal_attention(q, k, v, layout(lengths))
    assert torch.equal(before[1:], after[1:])


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_rotary_scores_depend_on_the_distance_alone(query_position, key_position, shift):
    q, k, _ = _qkv(1, 1, 8)

    def score(a, b):
        angles_q, angles_k = (rotation(torch.tensor([position]), 8) for position in (a, b))
        return (rotary(q, angles_q) * rotary(k, angles_k)).sum()

    torch.testing.assert_close(
        score(query_position, key_position),
        score(query_position + shift, key_position + shift),
        rtol=0,
        atol=2e-4,  # angles up to 600 rad are computed in float32: 600 * 2^-24 each
    )


def test_rotary_keeps_lengths_and_leaves_position_zero_alone():
    q, _, _ = _qkv(5, 2, 6)
    rotated = rotary(q, rotation(torch.arange(5), 6))
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(rotated[0], q[0])
    assert not torch.allclose(rotated[1], q[1])


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_the_order_of_events_matters(num_heads):
    torch.manual_seed(0)
    attention = CausalSelfAttention(16, num_heads)
    x = torch.randn(3, 16)
    batch = layout(torch.tensor([3]))
    shared = SharedInputs(batch, rotation(batch.positions, 16 // num_heads))
    with torch.no_grad():
        last = attention(x, shared)[0][-1]
        swapped = attention(x[[1, 0, 2]], shared)[0][-1]
    assert (last - swapped).abs().max() > 1e-4
