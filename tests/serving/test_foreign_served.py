"""A decoder of another library, co-trained inside the ranker, exported in either mode, and served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.foreign.config import ForeignConfig
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig
from foundation.pretraining import build_model
from foundation.release import load_release, save_release
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import build_vocabularies
from foundation.window import WindowConfig
from ranker.artifact import load_ranker
from serving.client import Client
from serving.repository import ExportConfig, export_repository
from serving.server import launch

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def folders(synthetic_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A release with a small Llama of random weights, and a ranker that was co-trained on it for an epoch."""
    folder = tmp_path_factory.mktemp("foreign")
    tokenizer = Tokenizer(synthetic_dataset.schema, build_vocabularies(synthetic_dataset))
    config = FoundationConfig(
        DecoderConfig(width=16, num_layers=2),
        WindowConfig(12, 4),
        foreign=ForeignConfig("hugging_face", json.dumps(LLAMA)),
    )
    torch.manual_seed(0)
    model = build_model(config, tokenizer, synthetic_dataset)
    save_release(folder / "release", model, tokenizer, training_data_of(synthetic_dataset), {})
    command = [
        *(sys.executable, "-m", "ranker.cotrain", "--data", str(synthetic_dataset.folder)),
        *("--release", str(folder / "release"), "--out", str(folder / "run"), "--epochs", "1"),
        *("--requests-per-batch", "16", "--crossing-layers", "2"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "release", folder / "run" / "ranker"


def test_co_training_moves_all_of_it(folders: tuple[Path, Path]) -> None:
    before = load_release(folders[0]).model.decoder.state_dict()
    after = load_ranker(folders[1]).model.profile_tower.foundation.decoder.state_dict()  # type: ignore[union-attr]
    still = [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
    assert not still


@pytest.mark.parametrize("mode", ["vector", "crossing"])
def test_it_is_served_in_either_mode(folders: tuple[Path, Path], make_request, tmp_path: Path, mode) -> None:
    # Export holds split and exported logits to those of the whole graph.
    export_repository(ExportConfig(folders[1], tmp_path / "repository", mode=mode))
    with launch(tmp_path / "repository", threads=1) as server, Client(server.grpc_url) as client:
        answer = client.rank(make_request(num_events=9, num_candidates=5))
    assert answer.logits.shape == (5, 2)
    assert len(set(answer.logits[:, 0].tolist())) == 5
