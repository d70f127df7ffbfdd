"""Unusual schemas train from data to release: merged events; ids and order alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.dataset import load_dataset
from foundation.decoder import DecoderConfig
from foundation.model import FoundationConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.release import load_release
from foundation.training_batches import BatchConfig
from foundation.window import WindowConfig

MERGED = """
[merge]
adjacent = true
[[facet]]
name = "seconds"
role = "what"
kind = "duration"
"""
BARE = """
[time]
channels = []
"""


def _write(folder: Path, schema: str) -> Path:
    """20 profiles with 12 events each of 15 items, every event logged as three actions."""
    rng = np.random.default_rng(0)
    item_id = rng.integers(5, size=(20, 12)) + 5 * (np.arange(12) % 3)
    folder.mkdir()
    (folder / "schema.toml").write_text(schema)
    pl.DataFrame(
        {
            "profile_id": np.repeat(np.arange(20), 36),
            "item_id": np.repeat(item_id, 3, axis=1).ravel(),
            "timestamp": np.arange(20 * 36) * 60,
            "seconds": rng.integers(60, size=20 * 36),
        }
    ).write_parquet(folder / "events.parquet")
    return folder


@pytest.mark.parametrize(
    ("schema", "num_events", "columns"),
    [
        (MERGED, 240, ("hour_of_week", "date", "gap", "seconds", "num_actions")),
        (BARE, 720, ("no_context",)),
    ],
)
def test_a_release_is_trained(tmp_path: Path, schema: str, num_events: int, columns: tuple) -> None:
    data = _write(tmp_path / "data", schema)
    dataset = load_dataset(data)
    assert dataset.num_events == num_events
    model = FoundationConfig(DecoderConfig(width=8, num_layers=1), window=WindowConfig(10, 5))
    pretrain(PretrainConfig(data, tmp_path / "run", epochs=1, model=model, batch=BatchConfig(100)))
    release = load_release(tmp_path / "run" / "release")
    assert release.tokenizer.facet_columns == columns
    assert release.tokenizer.schema == dataset.schema
