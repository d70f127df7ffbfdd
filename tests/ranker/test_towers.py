"""Profile and candidate towers: what goes into a vector, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundation.model import unit
from ranker.arches.profile_tower import DecoderTower, PooledTower

WIDTH = 16  # of the fixtures' decoder


def test_decoder_tower_leads_with_the_unit_hidden_state_of_each_requests_own_token(
    make_assembly, make_batch
) -> None:
    assembly = make_assembly("decoder")
    profile, tower = make_batch(assembly).profile, assembly.model.profile_tower
    assert isinstance(tower, DecoderTower)
    vector, hidden, _ = tower(profile, tower.item_vectors())
    assert hidden is not None
    assert hidden.shape == (len(profile.item_ids), WIDTH)
    assert vector.shape == (4, tower.width)
    torch.testing.assert_close(vector[:, :WIDTH], unit(hidden[profile.last_index]))
    torch.testing.assert_close(vector[:, :WIDTH].norm(dim=1), torch.ones(4))
    assert torch.equal(vector[:, -profile.dense.shape[1] :], profile.dense)


def test_an_appended_event_changes_its_own_request_alone(
    synthetic_dataset, make_assembly, raw_histories
) -> None:
    for kind in ("decoder", "pooled"):
        assembly = make_assembly(kind)
        before = assembly.features.profile_inputs(raw_histories(synthetic_dataset, [0, 1], [4, 4]))
        after = assembly.features.profile_inputs(raw_histories(synthetic_dataset, [0, 1], [5, 4]))
        first = assembly.model.encode_profile(before).vector
        second = assembly.model.encode_profile(after).vector
        width = assembly.model.profile_tower.item_width
        history = slice(0, width) if kind == "decoder" else slice(0, -before.dense.shape[1])
        assert (first[0, history] - second[0, history]).abs().max() > 1e-3
        torch.testing.assert_close(first[1], second[1], rtol=1e-6, atol=1e-6)


def test_pooled_tower_reads_recent_items_and_no_tokens(make_assembly, make_batch) -> None:
    assembly = make_assembly("pooled")
    profile, tower = make_batch(assembly).profile, assembly.model.profile_tower
    assert isinstance(tower, PooledTower)
    vector, hidden, _ = tower(profile)
    assert hidden is None
    assert tower.item_vectors() is None
    other_tokens = profile._replace(
        facet_ids=profile.facet_ids.roll(1, 0), item_ids=profile.item_ids.roll(1, 0)
    )
    assert torch.equal(tower(other_tokens).vector, vector)
    other_items = profile._replace(sparse=torch.where(profile.sparse >= 0, 2, profile.sparse))
    assert not torch.equal(tower(other_items).vector, vector)


def test_both_towers_get_the_same_features_but_for_the_history(make_assembly) -> None:
    decoder, pooled = (make_assembly(kind).features.fields.profile for kind in ("decoder", "pooled"))
    assert pooled.num_dense == decoder.num_dense
    shared = len(decoder.sparse)
    assert pooled.sparse[:shared] == decoder.sparse
    assert [field.name for field in pooled.sparse[shared:]][:1] == ["recent_item_id"]
    assert "recent_genres" in [field.name for field in pooled.sparse[shared:]]


@pytest.mark.parametrize("kind", ["decoder", "pooled"])
def test_candidate_vectors_depend_on_the_item_alone(make_assembly, kind) -> None:
    model = make_assembly(kind).model
    rows = torch.tensor([7, 2, 7, 0, 30])
    item_vectors = model.item_vectors()
    vectors = model.candidate_tower(rows, item_vectors)
    assert vectors.shape == (5, model.candidate_tower.width)
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])
    catalogue = model.candidate_tower(torch.arange(len(model.candidate_tower.item_dense)), item_vectors)
    torch.testing.assert_close(vectors, catalogue[rows], rtol=1e-6, atol=1e-7)
    if item_vectors is not None:
        torch.testing.assert_close(vectors[:, :WIDTH], unit(item_vectors.vectors[rows]))


@pytest.mark.parametrize("kind", ["decoder", "pooled"])
def test_an_unknown_candidate_says_nothing(make_assembly, kind) -> None:
    model = make_assembly(kind).model
    unknown = model.candidate_tower(torch.tensor([0]), model.item_vectors())
    assert not unknown.any()


def test_static_features_travel_with_the_model(make_assembly) -> None:
    state = make_assembly("pooled").model.state_dict()
    assert state["candidate_tower.item_sparse"].dtype == torch.int64
    assert np.isfinite(state["candidate_tower.item_dense"].numpy()).all()
