"""Fixtures shared by all tests: one small synthetic world and rankers on it, written once, for no test to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from foundation.dataset import Dataset, load_dataset
from foundation.sources.synthetic import write_synthetic
from foundation.sources.synthetic_world import SyntheticConfig

RankerKind = Literal["decoder", "pooled", "crossing"]


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder: 60 profiles, 150 items, about 2,000 events, requests with impressions."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic(folder, SyntheticConfig(profiles=60, items=150, sessions=12))
    return folder


@pytest.fixture(scope="session")
def synthetic_dataset(synthetic_folder: Path) -> Dataset:
    """The dataset of `synthetic_folder`."""
    return load_dataset(synthetic_folder)


@pytest.fixture(scope="session")
def ranker_folder(
    synthetic_folder: Path, synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[RankerKind], Path]:
    """Gives the folder of a tiny ranker with the given tower, as co-training would write it; `crossing`: the decoder's,
    whose candidates can cross its top layer.

    Its weights are random and large: attention is sharp and logits are spread, so that a wrong input shows.
    """
    # Late, so that tests of the foundation alone don't wait for TorchRec.
    import torch

    from foundation.decoder import DecoderConfig
    from foundation.item_features import item_facts, num_item_feature_rows
    from foundation.manifest import training_data_of
    from foundation.model import FoundationConfig, FoundationModel
    from foundation.release import load_release, save_release
    from foundation.tokenizer import Tokenizer
    from foundation.vocabulary import build_vocabularies
    from foundation.window import WindowConfig
    from ranker.arches.interaction import InteractionConfig
    from ranker.artifact import TrainedRanker, save_ranker
    from ranker.assembly import assemble_ranker
    from ranker.model import RankerConfig
    from ranker.schema import load_tasks

    folder = tmp_path_factory.mktemp("rankers")
    schema, vocabularies = synthetic_dataset.schema, build_vocabularies(synthetic_dataset)
    tokenizer, tasks = Tokenizer(schema, vocabularies), load_tasks(synthetic_folder / "schema.toml")
    sizes = FoundationConfig(DecoderConfig(width=16, num_layers=2, num_heads=2), WindowConfig(12, 4))
    facts = item_facts(tokenizer, synthetic_dataset.catalogue)

    def write(kind: RankerKind) -> None:
        torch.manual_seed(0)
        num_feature_rows = num_item_feature_rows(schema, vocabularies)
        foundation = FoundationModel(
            sizes, tokenizer.num_facet_rows, num_feature_rows, facts, tokenizer.age_column
        )
        save_release(
            folder / f"{kind}_release", foundation, tokenizer, training_data_of(synthetic_dataset), {}
        )
        release = load_release(folder / f"{kind}_release")
        interaction, layers = InteractionConfig(3, 20, (24, 12)), int(kind == "crossing")
        tower = "decoder" if kind == "crossing" else kind
        config = RankerConfig(tower, 4, 8, recent_items=5, interaction=interaction, crossing_layers=layers)
        assembly = assemble_ranker(config, synthetic_dataset, release, [task.name for task in tasks])
        with torch.no_grad():
            for parameter in assembly.model.parameters():
                parameter.mul_(3)
        trained = TrainedRanker(assembly.model, assembly.features, tasks)
        save_ranker(folder / kind, trained, release.manifest, {})

    def give(kind: RankerKind) -> Path:
        if not (folder / kind).exists():
            write(kind)
        return folder / kind

    return give
