"""Each kind of block against its formula written out; none looks ahead, and all are stable under append."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.attention_tiles import AttentionConfig
from foundation.blocks.hstu import time_bucket
from foundation.decoder import BlockKind, Decoder, DecoderConfig
from foundation.layout import layout
from foundation.rotary import rotary, rotation

WIDTH, NUM_HEADS = 12, 3
ATTENTION = [
    AttentionConfig(),
    AttentionConfig("sliding", window=3),
    AttentionConfig("prefix", window=2, prefix=2),
    AttentionConfig("prefix", window=50, prefix=50),
]
BLOCKS = ["plain", "gated", "hstu"]


def _decoder(block: BlockKind, attention: AttentionConfig, num_layers: int = 2) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        WIDTH, num_layers, NUM_HEADS, dropout=0.5, block=block, attention=attention, hstu_window=20
    )
    decoder = Decoder(config).double().eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return decoder


def _tokens(num_tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 10**9, (num_tokens,), generator=generator).sort()[0]


def _sees(query: int, key: int, config: AttentionConfig) -> bool:
    near = config.kind == "full" or query - key < config.window
    return key <= query and (near or (config.kind == "prefix" and key < config.prefix))


def _heads(x: Tensor) -> Tensor:
    return x.view(len(x), NUM_HEADS, WIDTH // NUM_HEADS)


def _softmax_attention(module, x: Tensor, config: AttentionConfig) -> Tensor:
    """One query and one head at a time."""
    q, k, v = (_heads(part) for part in (x @ module.project_in.weight.T).chunk(3, dim=1))
    angles = rotation(torch.arange(len(x)), WIDTH // NUM_HEADS)
    q, k = rotary(q, angles), rotary(k, angles)
    out = torch.zeros_like(v)
    for query in range(len(x)):
        seen = [key for key in range(len(x)) if _sees(query, key, config)]
        for head in range(NUM_HEADS):
            scores = k[seen, head] @ q[query, head] / math.sqrt(q.shape[-1])
            out[query, head] = scores.softmax(0) @ v[seen, head]
    return out.flatten(1) @ module.project_out.weight.T


def _naive_plain(block, x: Tensor, times: Tensor, config: AttentionConfig) -> Tensor:
    x = x + _softmax_attention(block.attention, block.attention_norm(x), config)
    hidden = block.feed_forward_norm(x) @ block.feed_forward.project_in.weight.T
    hidden = F.gelu(hidden + block.feed_forward.project_in.bias)
    return x + hidden @ block.feed_forward.project_out.weight.T + block.feed_forward.project_out.bias


def _naive_gated(block, x: Tensor, times: Tensor, config: AttentionConfig) -> Tensor:
    gate = 1 / (1 + (-(x @ block.attention_gate.weight.T + block.attention_gate.bias)).exp())
    x = x + gate * _softmax_attention(block.attention, block.attention_norm(x), config)
    gate = 1 / (1 + (-(x @ block.feed_forward_gate.weight.T + block.feed_forward_gate.bias)).exp())
    first, second = (block.feed_forward_norm(x) @ block.feed_forward.project_in.weight.T).chunk(2, dim=1)
    return x + gate * (F.silu(first) * second @ block.feed_forward.project_out.weight.T)


def _naive_hstu(block, x: Tensor, times: Tensor, config: AttentionConfig) -> Tensor:
    projected = block.norm(x) @ block.project_in.weight.T
    u, v, q, k = (projected * projected.sigmoid()).chunk(4, dim=1)
    q, k, v = _heads(q), _heads(k), _heads(v)
    out = torch.zeros_like(v)
    for query in range(len(x)):
        for key in range(len(x)):
            if not _sees(query, key, config):
                continue
            seconds = int(times[query] - times[key])
            bucket = math.floor(math.log(max(1, abs(seconds))) / 0.301)
            bias = block.distance_bias[min(query - key, 19)] + block.time_bias[bucket]
            for head in range(NUM_HEADS):
                score = q[query, head] @ k[key, head] + bias
                out[query, head] += score * score.sigmoid() / 20 * v[key, head]
    gated = u * block.attended_norm(out.flatten(1))
    return x + gated @ block.project_out.weight.T + block.project_out.bias


NAIVE = {"plain": _naive_plain, "gated": _naive_gated, "hstu": _naive_hstu}


@pytest.mark.parametrize("attention", ATTENTION, ids=lambda config: f"{config.kind}-{config.window}")
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_its_formula_with_gradients(block, attention):
    decoder = _decoder(block, attention, num_layers=1)
    lengths = [1, 25, 0, 4]
    x, times = _tokens(sum(lengths))
    x.requires_grad_()
    naive = [
        decoder.final_norm(NAIVE[block](decoder.blocks[0], own, own_times, attention))
        for own, own_times in zip(x.split(lengths), times.split(lengths), strict=True)
    ]
    expected, found = torch.cat(naive), decoder(x, layout(torch.tensor(lengths)), times)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(found)
    variables = (x, *decoder.parameters())
    for gradient, wanted in zip(
        torch.autograd.grad((found * weights).sum(), variables),
        torch.autograd.grad((expected * weights).sum(), variables),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("attention", ATTENTION, ids=lambda config: f"{config.kind}-{config.window}")
@pytest.mark.parametrize("block", BLOCKS)
def test_what_comes_later_changes_nothing_at_all(block, attention):
    decoder = _decoder(block, attention)
    lengths = torch.tensor([30, 7])
    x, times = _tokens(37)
    with torch.no_grad():
        before = decoder(x, layout(lengths), times)
        for changed in (1, 12, 29):
            later_x, later_times = x.clone(), times.clone()
            later_x[changed:30] += 100.0
            later_times[changed:30] += 12_345
            after = decoder(later_x, layout(lengths), later_times)
            assert torch.equal(before[:changed], after[:changed])
            assert torch.equal(before[30:], after[30:])
            assert not torch.equal(before[changed], after[changed])


@pytest.mark.parametrize("block", BLOCKS)
@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 40), more=st.integers(1, 9), attention=st.sampled_from(ATTENTION))
def test_an_appended_token_changes_none_before_it(block, length, more, attention):
    decoder = _decoder(block, attention)
    x, times = _tokens(length + more)
    with torch.no_grad():
        whole = decoder(x, layout(torch.tensor([length + more])), times)
        alone = decoder(x[:length], layout(torch.tensor([length])), times[:length])
    torch.testing.assert_close(whole[:length], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_last_of_the_layers_is_the_output(block):
    decoder = _decoder(block, ATTENTION[2], num_layers=3)
    x, times = _tokens(9)
    batch = layout(torch.tensor([4, 5]))
    with torch.no_grad():
        layers = decoder.layers(x, batch, times)
        assert len(layers) == 3
        assert torch.equal(layers[-1], decoder(x, batch, times))
        del decoder.blocks[1:]
        assert torch.equal(layers[0], decoder(x, batch, times))


@given(st.integers(-(10**12), 10**12))
def test_time_buckets_are_logarithms(seconds):
    expected = math.floor(math.log(max(1, abs(seconds))) / 0.301)
    assert time_bucket(torch.tensor([seconds])).item() == expected


def test_time_buckets_by_hand():
    # e^0.602 = 1.8, e^0.903 = 2.5, e^8.127 = 3385, e^8.428 = 4573; the largest share the last
    found = time_bucket(torch.tensor([0, 1, -1, 2, 3, 3600, -3600, 2**62]))
    assert found.tolist() == [0, 0, 0, 2, 3, 27, 27, 127]


@pytest.mark.parametrize(
    ("times", "found"),
    [(None, "none"), (torch.zeros(3), "torch.float32"), (torch.zeros(2, dtype=torch.int64), r"\(2,\)")],
)
def test_hstu_needs_the_time_of_every_token(times, found):
    decoder = _decoder("hstu", ATTENTION[0])
    with pytest.raises(ValueError, match=f'"hstu" read times_T, int64 unix seconds.* got .*{found}'):
        decoder(torch.zeros(3, WIDTH).double(), layout(torch.tensor([3])), times)
