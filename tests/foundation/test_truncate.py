"""A shallower release is the deeper one without its upper blocks, and is refused where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foundation.aggregation import AggregationConfig, Pool
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.layout import layout
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig
from foundation.pretraining import build_model
from foundation.release import load_release, save_release
from foundation.truncate import TruncateConfig, truncate


def write(folder: Path, dataset, tokenizer, **fields) -> Path:
    torch.manual_seed(0)
    config = FoundationConfig(DecoderConfig(width=8, num_layers=3), **fields)
    save_release(folder, build_model(config, tokenizer, dataset), tokenizer, training_data_of(dataset), {})
    return folder


def test_its_output_is_that_of_the_deep_one_s_layer(tmp_path, synthetic_dataset, synthetic_tokenizer):
    deep = write(tmp_path / "deep", synthetic_dataset, synthetic_tokenizer)
    truncate(TruncateConfig(deep, 2, tmp_path / "shallow"))
    whole, shallow = load_release(deep).model, load_release(tmp_path / "shallow").model
    facets, items = torch.randint(1, 50, (5, len(synthetic_tokenizer.facet_columns))), torch.arange(2, 7)
    where = layout(torch.tensor([3, 2]))
    with torch.no_grad():
        x_TD = whole.tokens(facets, items, whole.item_vectors())
        expected = whole.decoder.layers(x_TD, where)[1]
        assert torch.equal(shallow(facets, items, where, shallow.item_vectors()), expected)


@pytest.mark.parametrize("tokens", ["last", "mean", "attention"])
def test_it_gives_what_layer_wise_supervision_trained(
    tmp_path, synthetic_dataset, synthetic_tokenizer, tokens: Pool
):
    pooled = AggregationConfig(tokens, num_recent=2)
    deep = write(tmp_path / "deep", synthetic_dataset, synthetic_tokenizer, aggregation=pooled)
    truncate(TruncateConfig(deep, 2, tmp_path / "shallow"))
    whole, shallow = load_release(deep).model, load_release(tmp_path / "shallow").model
    facets, items = torch.randint(1, 50, (5, len(synthetic_tokenizer.facet_columns))), torch.arange(2, 7)
    where = layout(torch.tensor([3, 2]))
    with torch.no_grad():
        x_TD = whole.tokens(facets, items, whole.item_vectors())
        trained = whole.representations(x_TD, where, every_layer=True)
        assert len(trained) == 3
        assert torch.equal(shallow(facets, items, where, shallow.item_vectors()), trained[1])
        assert torch.equal(whole(facets, items, where, whole.item_vectors()), trained[2])


def test_layers_that_are_not_there_are_refused(tmp_path, synthetic_dataset, synthetic_tokenizer):
    deep = write(tmp_path / "deep", synthetic_dataset, synthetic_tokenizer)
    with pytest.raises(DataError, match=r"--layers 4: num_layers must be in \[1, 3\], got 4"):
        truncate(TruncateConfig(deep, 4, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_mixed_layers_have_no_shallower_part(tmp_path, synthetic_dataset, synthetic_tokenizer):
    mixed = AggregationConfig(layers="mix")
    deep = write(tmp_path / "deep", synthetic_dataset, synthetic_tokenizer, aggregation=mixed)
    with pytest.raises(DataError, match="mixes all its layers"):
        truncate(TruncateConfig(deep, 2, tmp_path / "out"))
