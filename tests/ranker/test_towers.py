"""Profile and candidate towers: what goes into a vector, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from foundation.layout import layout
from foundation.model import unit
from ranker.arches.profile_tower import DecoderTower, PooledTower
from ranker.arches.taps import LayerTaps, ProfileConfig, TokenAttention

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


def test_taps_join_the_vector_behind_the_releases_own(make_assembly, make_batch) -> None:
    plain, tapped = make_assembly("decoder"), make_assembly("decoder", profile=ProfileConfig(taps=(2, 1)))
    profile = make_batch(plain).profile
    before = plain.model.encode_profile(profile).vector
    vector = tapped.model.encode_profile(profile).vector
    foundation, items = tapped.model.profile_tower.foundation, tapped.model.item_vectors()
    tokens = foundation.tokens(profile.facet_ids, profile.item_ids, items)
    first, second = foundation.decoder.layers(tokens, profile.layout)
    assert tapped.model.profile_tower.width == plain.model.profile_tower.width + 2 * WIDTH
    torch.testing.assert_close(vector[:, :WIDTH], before[:, :WIDTH])
    torch.testing.assert_close(vector[:, WIDTH : 2 * WIDTH], unit(second[profile.last_index]))
    torch.testing.assert_close(vector[:, 2 * WIDTH : 3 * WIDTH], unit(first[profile.last_index]))


@pytest.mark.parametrize("tokens", ["mean", "attention"])
@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_newest_tokens_are_pooled_request_by_request(tokens, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    taps = LayerTaps(ProfileConfig((1, 2), tap_tokens=tokens, tap_recent=3), width=4, num_layers=2)
    for parameter in taps.parameters():
        nn.init.normal_(parameter)
    layers = [torch.randn(sum(lengths), 4) for _ in range(2)]
    found = taps(layers, layout(torch.tensor(lengths))).unflatten(1, (2, 4))
    for tap, hidden in enumerate(layers):
        for b, history in enumerate(hidden.split(lengths)):
            newest = history.flip(0)[:3]
            shares = torch.full((len(newest),), 1 / len(newest))
            if taps.attention is not None:
                attention = taps.attention[tap]
                assert isinstance(attention, TokenAttention)
                query = attention.query(newest[0]) / 2
                shares = (newest @ query + attention.distance_bias[: len(newest)]).softmax(0)
            torch.testing.assert_close(found[b, tap], unit(shares @ newest))


@pytest.mark.parametrize("tokens", ["last", "mean", "attention"])
def test_mixed_taps_are_one_vector_of_their_learned_average(tokens) -> None:
    torch.manual_seed(0)
    taps = LayerTaps(ProfileConfig((1, 3), mix_taps=True, tap_tokens=tokens), width=4, num_layers=3)
    layers = [torch.randn(6, 4) for _ in range(3)]
    assert taps.layer_mix is not None
    nn.init.normal_(taps.layer_mix.weights)
    share = taps.layer_mix.weights.softmax(0)
    alone = LayerTaps(ProfileConfig((1,), tap_tokens=tokens), width=4, num_layers=1)
    where = layout(torch.tensor([4, 2]))
    assert taps.width == alone.width == 4
    torch.testing.assert_close(
        taps(layers, where), alone([share[0] * layers[0] + share[1] * layers[2]], where)
    )


def test_a_gradient_through_a_tap_reaches_the_layers_at_and_below_it(make_assembly, make_batch) -> None:
    config = ProfileConfig(taps=(1,), tap_tokens="attention", tap_recent=4)
    assembly = make_assembly("decoder", profile=config)
    vector = assembly.model.encode_profile(make_batch(assembly).profile).vector
    vector[:, WIDTH : 2 * WIDTH].square().sin().sum().backward()
    decoder = assembly.model.profile_tower.foundation.decoder
    lower, upper = (
        [p for p in block.parameters() if p.grad is not None and p.grad.any()] for block in decoder.blocks
    )
    assert len(lower) == len(list(decoder.blocks[0].parameters()))
    assert not upper


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taps": (0,)}, r"taps is \(0,\); layers are different numbers from 1"),
        ({"taps": (1, 1)}, r"taps is \(1, 1\); layers are different"),
        ({"tap_tokens": "max"}, r"tap_tokens is 'max'; it must be one of \('last', 'mean', 'attention'\)"),
        ({"tap_recent": 0}, "tap_recent is 0; it must be at least 1"),
    ],
)
def test_taps_that_cannot_be_are_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=f"ProfileConfig.{message}"):
        ProfileConfig(**fields)


def test_taps_above_the_decoder_or_without_one_are_refused(make_assembly) -> None:
    with pytest.raises(ValueError, match=r"taps is \(1, 3\); the release's decoder has 2 layers"):
        make_assembly("decoder", profile=ProfileConfig(taps=(1, 3)))
    with pytest.raises(ValueError, match=r"taps is \(1,\); the pooled tower has no layers to tap"):
        make_assembly("pooled", profile=ProfileConfig(taps=(1,)))


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
    vectors = model.candidate_tower(rows, model.candidate_vectors(rows, item_vectors))
    assert vectors.shape == (5, model.candidate_tower.width)
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])
    catalogue = model.candidate_tower(
        torch.arange(len(model.candidate_tower.item_dense)),
        None if item_vectors is None else item_vectors.vectors,
    )
    torch.testing.assert_close(vectors, catalogue[rows], rtol=1e-6, atol=1e-7)
    if item_vectors is not None:
        torch.testing.assert_close(vectors[:, :WIDTH], unit(item_vectors.vectors[rows]))


@pytest.mark.parametrize("kind", ["decoder", "pooled"])
def test_an_unknown_candidate_says_nothing(make_assembly, kind) -> None:
    model = make_assembly(kind).model
    oov = torch.tensor([0])
    unknown = model.candidate_tower(oov, model.candidate_vectors(oov, model.item_vectors()))
    assert not unknown.any()


def test_static_features_travel_with_the_model(make_assembly) -> None:
    state = make_assembly("pooled").model.state_dict()
    assert state["candidate_tower.item_sparse"].dtype == torch.int64
    assert np.isfinite(state["candidate_tower.item_dense"].numpy()).all()
