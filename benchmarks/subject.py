"""The ranker under measurement: a trained one, or one with seeded random weights on the synthetic world."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from foundation.dataset import Dataset, load_dataset
from foundation.home import home
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig, FoundationModel
from foundation.release import load_release, save_release
from foundation.sources.synthetic import write_synthetic
from foundation.sources.synthetic_world import SyntheticConfig
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from ranker.artifact import LoadedRanker, TrainedRanker, load_ranker, save_ranker
from ranker.assembly import assemble_ranker
from ranker.model import RankerConfig
from ranker.schema import load_tasks

# Sessions enough that most profiles fill a window of 200 events; its files take a few seconds to make.
WORLD = SyntheticConfig(profiles=200, items=2_000, sessions=70)


class Subject(NamedTuple):
    """What is measured.

    Attributes:
        folder: of the ranker; what `serving.export` takes.
        loaded: the ranker, in evaluation mode.
        dataset: whose held-out profiles make the requests.
        weights: "trained" or "random", for the report.
    """

    folder: Path
    loaded: LoadedRanker
    dataset: Dataset
    weights: str


def trained_subject(ranker: Path, data: Path) -> Subject:
    """A ranker from co-training and the dataset it was trained on."""
    return Subject(ranker, load_ranker(ranker), load_dataset(data), "trained")


def random_subject(
    folder: Path, world: SyntheticConfig = WORLD, config: FoundationConfig | None = None
) -> Subject:
    """A ranker of the demo's size with seeded random weights, saved in `folder`; speed does not depend on weights.

    The synthetic world is kept in $MARQUEE_HOME and reused.

    Args:
        folder: new or empty.
        world: size of the synthetic world.
        config: of the decoder; None for the default one, which is the demo's.
    """
    data = home() / "data" / f"synthetic-{world.profiles}x{world.items}x{world.sessions}"
    dataset = write_synthetic(data, world)
    vocabularies = build_vocabularies(dataset)
    tokenizer = Tokenizer(dataset.schema, vocabularies)
    num_feature_rows = num_item_feature_rows(dataset.schema, vocabularies)
    torch.manual_seed(0)
    foundation = FoundationModel(
        config or FoundationConfig(),
        tokenizer.num_facet_rows,
        num_feature_rows,
        item_facts(tokenizer, dataset.catalogue),
        tokenizer.age_column,
    )
    manifest = save_release(folder / "release", foundation, tokenizer, training_data_of(dataset), {})
    tasks = load_tasks(data / "schema.toml")
    model, features = assemble_ranker(
        RankerConfig(), dataset, load_release(folder / "release"), [task.name for task in tasks]
    )
    save_ranker(folder / "ranker", TrainedRanker(model, features, tasks), manifest, {})
    return Subject(folder / "ranker", load_ranker(folder / "ranker"), dataset, "random")
