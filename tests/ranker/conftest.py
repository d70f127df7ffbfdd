"""Tiny rankers on the synthetic world, and raw requests made from it event by event, as a client would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig, FoundationModel
from foundation.release import Release, load_release, save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig, window_start
from ranker.arches.interaction import InteractionConfig
from ranker.assembly import Assembly, assemble_on, row_features
from ranker.features.builder import FeatureBuilder
from ranker.features.candidate_features import CandidateFeatures
from ranker.features.histories import Histories
from ranker.features.inputs import CandidateInputs
from ranker.model import RankerConfig, RankerInputs, TowerKind
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.inputs import model_inputs
from ranker.rows.job import RowsConfig, make_rows
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks
from ranker.training.augmentation import AugmentationConfig
from ranker.training.cotrain_config import CotrainConfig
from ranker.training.sharding import process_group

TASKS = ("watch", "like")
WINDOW = WindowConfig(window=12, block=4)
DECODER = DecoderConfig(width=16, num_layers=2, num_heads=2, dropout=0.0)
NOTHING_HIDDEN = AugmentationConfig(0.0, 0.0, 0.0, 0.0)
INTERACTION = InteractionConfig(num_dots=3, dot_width=20, hidden_widths=(24, 12))

MakeAssembly = Callable[..., Assembly]
RawHistories = Callable[[Dataset, Sequence[int], Sequence[int]], Histories]


@pytest.fixture(scope="session")
def release_folder(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory):
    """An untrained foundation release of the synthetic world."""
    torch.manual_seed(0)
    vocabularies = build_vocabularies(synthetic_dataset)
    schema = synthetic_dataset.schema
    tokenizer = Tokenizer(schema, vocabularies)
    model = FoundationModel(
        FoundationConfig(DECODER, window=WINDOW),
        tokenizer.num_facet_rows,
        num_item_feature_rows(schema, vocabularies),
        item_facts(tokenizer, synthetic_dataset.catalogue),
        tokenizer.age_column,
    )
    folder = tmp_path_factory.mktemp("releases") / "release"
    save_release(folder, model, tokenizer, training_data_of(synthetic_dataset), {})
    return folder


@pytest.fixture
def release(release_folder) -> Release:
    """A fresh copy of the release, whose model may be trained."""
    return load_release(release_folder)


@pytest.fixture
def make_assembly(synthetic_dataset: Dataset, release: Release) -> MakeAssembly:
    """Makes a ranker in evaluation mode: its tower, candidate features, and other fields of `RankerConfig` by name."""

    def make(tower: TowerKind, candidates: CandidateFeatures | None = None, **options: Any) -> Assembly:
        torch.manual_seed(1)
        sizes = {"embedding_dim": 4, "item_embedding_dim": 8, "recent_items": 5, "interaction": INTERACTION}
        config = RankerConfig(tower, **{**sizes, **options})
        data = row_features(synthetic_dataset, release, candidates)
        assembly = assemble_on(config, data, release, TASKS)
        assembly.model.eval()
        return assembly

    return make


@pytest.fixture(scope="session")
def raw_histories() -> RawHistories:
    """Makes raw requests at points of histories: event `ends[b]` of profile `profiles[b]` is next."""

    def make(dataset: Dataset, profiles: Sequence[int], ends: Sequence[int]) -> Histories:
        events, rows, starts, requests = dataset.events, [], [], []
        for profile, end in zip(profiles, ends, strict=True):
            first = int(events.offsets[profile])
            starts.append(int(window_start(end, WINDOW.window, WINDOW.block)))
            rows.append(np.arange(first + starts[-1], first + end))
            requests.append(first + end)
        history, request = np.concatenate(rows), np.array(requests)
        context = [facet.name for facet in dataset.schema.facets_of("when", "where")]
        return Histories(
            history_lengths=np.array([len(row) for row in rows]),
            num_events_before=np.array(starts),
            item_id=events.item_id[history],
            timestamp=events.timestamp[history],
            facets={name: values[history] for name, values in events.facets.items()},
            request_timestamp=events.timestamp[request],
            request_facets={name: events.facets[name][request] for name in context},
            profile_features={
                name: values[list(profiles)] for name, values in dataset.profiles.features.items()
            },
        )

    return make


@pytest.fixture
def make_batch(synthetic_dataset: Dataset, raw_histories: RawHistories):
    """Makes a batch of four requests (short, long, empty history, no candidates) with 11 candidates."""

    def make(assembly: Assembly) -> RankerInputs:
        lengths = np.diff(synthetic_dataset.events.offsets)
        profiles = np.argsort(-lengths, kind="stable")[:4].tolist()
        histories = raw_histories(synthetic_dataset, profiles, (3, int(lengths[profiles[1]]) - 1, 0, 5))
        candidates = synthetic_dataset.catalogue.item_id[np.array([5, 9, 5, 20, 33, 40, 41, 0, 1, 2, 3])]
        return RankerInputs(
            assembly.features.profile_inputs(histories),
            assembly.features.candidate_inputs(candidates, np.array([4, 6, 1, 0])),
        )

    return make


@pytest.fixture
def make_inputs(synthetic_dataset: Dataset, synthetic_folder: Path):
    """Makes rows of the training requests, one of each profile, and their model inputs."""
    tasks = load_tasks(synthetic_folder / "schema.toml")
    requests = build_requests(synthetic_dataset, tasks, "train", RequestConfig(per_profile=1))

    def make(features: FeatureBuilder) -> tuple[RankerInputs, Rows]:
        rows = RowMaker(synthetic_dataset, features).rows(requests)
        return model_inputs(features, rows), rows

    return make


@pytest.fixture(scope="session")
def only_request():
    """Cuts the candidates of one request out of a batch's, as a batch of their own."""

    def cut(candidates: CandidateInputs, request: int) -> CandidateInputs:
        first, last = candidates.offsets[request : request + 2].tolist()
        return CandidateInputs(
            candidates.item_rows[first:last],
            torch.tensor([0, last - first]),
            candidates.sparse[first:last],
            candidates.dense[first:last],
        )

    return cut


@pytest.fixture(scope="session")
def event_task_folder(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic world without its logged requests, and with tasks whose labels come from events."""
    folder = tmp_path_factory.mktemp("data") / "event-tasks"
    folder.mkdir()
    for name in ("events.parquet", "items.parquet", "profiles.parquet", "split.json"):
        shutil.copy(synthetic_folder / name, folder / name)
    schema, _, _ = (synthetic_folder / "schema.toml").read_text(encoding="utf-8").partition("[[task]]")
    tasks = (
        '[[task]]\nname = "watch"\nkind = "interaction"\n\n'
        '[[task]]\nname = "like"\nkind = "threshold"\nfacet = "duration"\nat_least = 1800\n'
    )
    (folder / "schema.toml").write_text(schema + tasks, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def cotrain_command(synthetic_folder: Path, release_folder: Path) -> Callable[..., list[str]]:
    """Gives the words of a small co-training run: `launcher` is what comes before `-m`, python alone by default."""

    def give(out: Path, *options: str, launcher: Sequence[str] = ()) -> list[str]:
        program = [sys.executable, *(["-m", "torch.distributed.run", *launcher] if launcher else [])]
        folders = ["--data", str(synthetic_folder), "--release", str(release_folder), "--out", str(out)]
        sizes = [
            "--requests-per-batch",
            "8",
            "--epochs",
            "3",
            "--hidden-widths",
            "24",
            "12",
            "--dot-width",
            "16",
        ]
        return [*program, "-m", "ranker.cotrain", *folders, *sizes, *options]

    return give


@pytest.fixture(scope="session")
def unbroken_on_two(
    cotrain_command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """The weights that two processes train when nothing goes wrong."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(
        cotrain_command(out, "--dropout", "0", launcher=["--standalone", "--nproc-per-node=2"]),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        timeout=180,
        check=True,
    )
    return load_file(out / "ranker" / "model.safetensors")


@pytest.fixture(scope="session")
def rows_folder(
    synthetic_folder: Path, release_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Request rows of the synthetic world, made with `release_folder`."""
    folder = tmp_path_factory.mktemp("rows") / "rows"
    make_rows(RowsConfig(synthetic_folder, release_folder, folder))
    return folder


@pytest.fixture
def copy(synthetic_folder: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic world, to be changed."""
    return Path(shutil.copytree(synthetic_folder, tmp_path / "data"))


@pytest.fixture
def make(release_folder: Path, tmp_path: Path) -> Callable[..., dict]:
    """Runs the feature job on a folder, to `rows`."""

    def run(data: Path, out: str = "rows", **settings) -> dict:
        return make_rows(RowsConfig(data, release_folder, tmp_path / out, **settings))

    return run


@pytest.fixture
def group():
    """A process group of one."""
    with process_group():
        yield


@pytest.fixture
def config(rows_folder: Path, release_folder: Path, tmp_path: Path) -> CotrainConfig:
    """A short run, from which nothing is hidden."""
    return CotrainConfig(
        release_folder,
        tmp_path / "run",
        rows=rows_folder,
        epochs=2,
        requests_per_batch=12,
        checkpoint_every=5,
        ranker=RankerConfig(
            embedding_dim=4, interaction=InteractionConfig(num_dots=2, dot_width=16, hidden_widths=(16, 8))
        ),
        augmentation=NOTHING_HIDDEN,
    )
