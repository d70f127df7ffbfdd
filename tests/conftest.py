"""Fixtures shared by all tests: one small synthetic world, written once, that no test may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.dataset import Dataset, load_dataset
from foundation.sources.synthetic import write_synthetic
from foundation.sources.synthetic_world import SyntheticConfig


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
