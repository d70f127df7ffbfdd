"""A decoder of another library in the place of ours: small, with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from foundation.branches import branches
from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.foreign.config import ForeignConfig, build_foreign
from foundation.foreign.packed import PackedForeign
from foundation.layout import layout
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig
from foundation.pretraining import build_model
from foundation.release import load_release, save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig

WIDTH, LAYERS = 16, 2
LLAMA = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def decoder(request) -> PackedForeign:
    torch.manual_seed(0)
    config = ForeignConfig("hugging_face", json.dumps(request.param))
    return PackedForeign(build_foreign(config, WIDTH, LAYERS)).eval()


@settings(deadline=None, max_examples=20)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
@torch.no_grad()
def test_a_sequence_reads_the_same_alone_and_in_a_batch(decoder, lengths, seed) -> None:
    torch.manual_seed(seed)
    tokens = torch.randn(sum(lengths), WIDTH)
    together = decoder(tokens, layout(torch.tensor(lengths))).split(lengths)
    for own, found in zip(tokens.split(lengths), together, strict=True):
        alone = decoder(own, layout(torch.tensor([len(own)])))
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_comes_later_changes_nothing_before(decoder) -> None:
    tokens = torch.randn(7, WIDTH)
    changed = tokens.clone()
    changed[4:] = 9
    where = layout(torch.tensor([7]))
    assert torch.equal(decoder(tokens, where)[:4], decoder(changed, where)[:4])


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=4))
@torch.no_grad()
def test_a_branch_is_the_sequence_with_that_token_at_its_end(decoder, sizes) -> None:
    lengths, numbers = (torch.tensor(each) for each in zip(*sizes, strict=True))
    torch.manual_seed(len(sizes))
    tokens, tails = torch.randn(int(lengths.sum()), WIDTH), torch.randn(int(numbers.sum()), WIDTH)
    offsets = [torch.cat((torch.zeros(1, dtype=torch.int64), each.cumsum(0))) for each in (lengths, numbers)]
    kept = decoder.read(tokens, layout(lengths), num_kept=LAYERS).key_values
    found = decoder.branch(tails, branches(*offsets), kept).split(numbers.tolist())
    sequences = zip(tokens.split(lengths.tolist()), tails.split(numbers.tolist()), found, strict=True)
    for sequence, own_tails, own_found in sequences:
        for tail, hidden in zip(own_tails, own_found, strict=True):
            whole = torch.cat((sequence, tail[None]))
            expected = decoder(whole, layout(torch.tensor([len(whole)])))[-1]
            torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


def test_branches_pass_through_all_its_layers(decoder) -> None:
    with pytest.raises(ValueError, match="all its layers: 2 of them, not 1"):
        decoder.read(torch.randn(3, WIDTH), layout(torch.tensor([3])), num_kept=1)


def test_a_release_of_it_comes_back(synthetic_dataset: Dataset, tmp_path: Path) -> None:
    tokenizer = Tokenizer(synthetic_dataset.schema, build_vocabularies(synthetic_dataset))
    config = FoundationConfig(
        DecoderConfig(width=WIDTH, num_layers=LAYERS),
        WindowConfig(12, 4),
        foreign=ForeignConfig("hugging_face", json.dumps(LLAMA)),
    )
    torch.manual_seed(0)
    model = build_model(config, tokenizer, synthetic_dataset)
    save_release(tmp_path / "release", model, tokenizer, training_data_of(synthetic_dataset), {})
    loaded = load_release(tmp_path / "release").model
    assert loaded.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_every_parameter_of_it_is_trained(decoder) -> None:
    decoder.zero_grad()
    decoder(torch.randn(5, WIDTH), layout(torch.tensor([3, 2]))).square().sum().backward()
    without = [name for name, each in decoder.named_parameters() if each.grad is None]
    assert not without


@pytest.mark.parametrize(
    ("adapter", "settings_text", "said"),
    [
        ("bert4you", "{}", "foreign.adapter is 'bert4you'; installed packages offer hugging_face"),
        ("hugging_face", "{}", "foreign.settings has no model_type"),
        ("hugging_face", json.dumps(LLAMA | {"hidden_size": 32}), "set --decoder.width 32"),
        ("hugging_face", json.dumps({"model_type": "no_such"}), "transformers makes no model"),
    ],
)
def test_what_makes_no_decoder_is_named(adapter: str, settings_text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        build_foreign(ForeignConfig(adapter, settings_text), WIDTH, LAYERS)


def test_an_adapter_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "foundation.foreign.hugging_face", raising=False)
    with pytest.raises(DataError, match=r"'hugging_face' can't be loaded: .*requirements/hugging_face.txt"):
        build_foreign(ForeignConfig("hugging_face", json.dumps(LLAMA)), WIDTH, LAYERS)


def test_first_weights_come_from_a_saved_model_of_the_same_settings(tmp_path: Path) -> None:
    config = AutoConfig.for_model(**LLAMA, vocab_size=9)
    saved = AutoModel.from_config(config).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    found = build_foreign(ForeignConfig("hugging_face", json.dumps(LLAMA), str(tmp_path)), WIDTH, LAYERS)
    weights = dict(found.named_parameters())
    assert {each.dtype for each in weights.values()} == {torch.float32}
    assert torch.equal(weights["model.norm.weight"], saved.norm.weight.float())
    own = saved.layers[1].mlp.up_proj.weight
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], own.float())
    # A release keeps the settings alone: were the folder's own taken, it could not be read again.
    wider = ForeignConfig("hugging_face", json.dumps(LLAMA | {"intermediate_size": 40}), str(tmp_path))
    with pytest.raises(DataError, match=r"foreign.weights: .* is no model of foreign.settings"):
        build_foreign(wider, WIDTH, LAYERS)


@pytest.mark.parametrize("shape", [LLAMA | {"max_position_embeddings": 13}, GPT2 | {"n_positions": 13}])
def test_a_decoder_knows_as_many_positions_as_the_window_needs(synthetic_dataset: Dataset, shape) -> None:
    tokenizer = Tokenizer(synthetic_dataset.schema, build_vocabularies(synthetic_dataset))
    foreign = ForeignConfig("hugging_face", json.dumps(shape))
    sizes = DecoderConfig(width=WIDTH, num_layers=LAYERS)
    build_model(FoundationConfig(sizes, WindowConfig(11, 4), foreign=foreign), tokenizer, synthetic_dataset)
    with pytest.raises(DataError, match=r"13 positions; window.window = 12 needs 14"):
        build_model(
            FoundationConfig(sizes, WindowConfig(12, 4), foreign=foreign), tokenizer, synthetic_dataset
        )


@pytest.mark.parametrize(
    ("text", "said"), [("no-such-file.json", "no file"), ("{", "not JSON"), ("{}x", "not JSON")]
)
def test_settings_that_are_no_json_object_are_named(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ForeignConfig("hugging_face", text)
