"""What a foundation release may be to become a ranker: intent, heads and pooling come along, HSTU is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foundation.aggregation import AggregationConfig
from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig
from foundation.objectives.heads import build_heads
from foundation.pretraining import build_model
from foundation.release import Release, load_release, save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig
from ranker.arches.interaction import InteractionConfig
from ranker.arches.profile_tower import DecoderTower
from ranker.artifact import TrainedRanker, load_ranker, save_ranker
from ranker.assembly import assemble_ranker
from ranker.model import RankerConfig
from ranker.schema import load_tasks

SIZES = FoundationConfig(DecoderConfig(width=16, num_heads=2, block="gated"), WindowConfig(12, 4))
RANKER = RankerConfig(
    "decoder",
    embedding_dim=4,
    item_embedding_dim=8,
    recent_items=5,
    interaction=InteractionConfig(3, 20, (24,)),
)


def _release(folder: Path, dataset: Dataset, config: FoundationConfig) -> Release:
    tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
    torch.manual_seed(0)
    heads = build_heads(["genres"], tokenizer, config.decoder.width)
    model = build_model(config, tokenizer, dataset)
    save_release(folder, model, tokenizer, training_data_of(dataset), {}, heads)
    return load_release(folder)


def test_a_decoder_that_reads_times_is_refused(tmp_path, synthetic_dataset) -> None:
    sizes = replace(SIZES, decoder=DecoderConfig(width=16, block="hstu"))
    release = _release(tmp_path / "release", synthetic_dataset, sizes)
    with pytest.raises(DataError, match=r"decoder.block is \"hstu\".*pre-train with \"plain\" or \"gated\""):
        assemble_ranker(RANKER, synthetic_dataset, release, ["watch", "like"])


def test_intent_and_pooling_come_back_from_the_artifact(
    tmp_path, synthetic_folder, synthetic_dataset, make_batch
) -> None:
    sizes = replace(SIZES, aggregation=AggregationConfig("attention", 3, "mix"), intent_classes=7)
    release = _release(tmp_path / "release", synthetic_dataset, sizes)
    tasks = load_tasks(synthetic_folder / "schema.toml")
    assembly = assemble_ranker(RANKER, synthetic_dataset, release, [task.name for task in tasks])
    model = assembly.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        batch = make_batch(assembly)
        expected = model(batch)
        save_ranker(tmp_path / "ranker", TrainedRanker(model, assembly.features, tasks), release.manifest, {})
        loaded = load_ranker(tmp_path / "ranker").model
        assert torch.equal(loaded(batch), expected)
        assert isinstance(loaded.profile_tower, DecoderTower)
        intent = loaded.profile_tower.foundation.intent
        assert intent is not None
        intent.embedding_CD.mul_(-1)
        assert not torch.allclose(loaded(batch), expected)
