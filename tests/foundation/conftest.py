"""A tokenizer and a small model over the synthetic world."""

from __future__ import annotations

import pytest
import torch

from foundation.dataset import Dataset
from foundation.decoder import DecoderConfig
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.model import FoundationConfig, FoundationModel
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import Vocabularies, build_vocabularies


@pytest.fixture(scope="session")
def synthetic_vocabularies(synthetic_dataset: Dataset) -> Vocabularies:
    return build_vocabularies(synthetic_dataset)


@pytest.fixture(scope="session")
def synthetic_tokenizer(synthetic_dataset: Dataset, synthetic_vocabularies: Vocabularies) -> Tokenizer:
    return Tokenizer(synthetic_dataset.schema, synthetic_vocabularies)


@pytest.fixture(scope="session")
def synthetic_ids(synthetic_dataset: Dataset, synthetic_tokenizer: Tokenizer) -> EventIds:
    """Every event of the synthetic world, looked up."""
    events = synthetic_dataset.events
    return synthetic_tokenizer.event_ids(events.item_id, events.timestamp, events.facets)


@pytest.fixture
def small_model(
    synthetic_dataset: Dataset, synthetic_vocabularies: Vocabularies, synthetic_tokenizer: Tokenizer
) -> FoundationModel:
    """Untrained, in evaluation mode, with weights far larger than at initialisation: attention is sharp, so that a
    difference in one token shows in those that may see it."""
    schema = synthetic_dataset.schema
    torch.manual_seed(0)
    model = FoundationModel(
        FoundationConfig(DecoderConfig(width=16, num_layers=2, num_heads=2)),
        synthetic_tokenizer.num_facet_rows,
        num_item_feature_rows(schema, synthetic_vocabularies),
        item_facts(synthetic_tokenizer, synthetic_dataset.catalogue),
        synthetic_tokenizer.age_column,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(15)
    return model.eval()
