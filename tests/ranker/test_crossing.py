"""Crossing: candidates pass through the decoder's top layers, and each knows of its request alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foundation.decoder import Decoder
from foundation.layout import layout
from ranker.arches.interaction import InteractionConfig
from ranker.arches.profile_tower import DecoderTower
from ranker.assembly import Assembly, assemble_ranker
from ranker.features.inputs import CandidateInputs
from ranker.model import Ranker, RankerConfig, RankerInputs

TASKS = ("watch", "like")


@pytest.fixture
def make_crossed(synthetic_dataset, release):
    """Makes a ranker with `layers` crossed layers of two, its weights `scale` times as large, in evaluation mode."""

    def make(layers: int = 1, scale: float = 3.0) -> Assembly:
        torch.manual_seed(1)
        interaction = InteractionConfig(num_dots=3, dot_width=20, hidden_widths=(24, 12))
        config = RankerConfig("decoder", 4, 8, 5, interaction=interaction, crossing_layers=layers)
        assembly = assemble_ranker(config, synthetic_dataset, release, TASKS)
        with torch.no_grad():
            for parameter in assembly.model.parameters():
                parameter.mul_(scale)
        assembly.model.eval()
        return assembly

    return make


def naive_crossed(model: Ranker, batch: RankerInputs) -> Tensor:
    """Each candidate at the end of its request's tokens, read with all of them by the top layers; `[C, D]`."""
    tower, items = model.profile_tower, model.item_vectors()
    assert isinstance(tower, DecoderTower) and model.crossing is not None and items is not None
    decoder = tower.foundation.decoder
    assert isinstance(decoder, Decoder)
    blocks = list(decoder.blocks)
    num_bottom = len(blocks) - model.config.crossing_layers
    x_TD = tower.foundation.tokens(batch.profile.facet_ids, batch.profile.item_ids, items)
    shared = decoder._shared_inputs(batch.profile.layout, None)
    for block in blocks[:num_bottom]:
        x_TD, _ = block(x_TD, shared)
    tokens, offsets = (
        model.crossing.token(items.vectors[batch.candidates.item_rows]),
        batch.candidates.offsets,
    )
    found = []
    for request, own_TD in enumerate(x_TD.split(batch.profile.layout.lengths.tolist())):
        for candidate in range(int(offsets[request]), int(offsets[request + 1])):
            longer_TD = torch.cat((own_TD, tokens[candidate : candidate + 1]))
            longer = decoder._shared_inputs(layout(torch.tensor([len(longer_TD)])), None)
            for block in blocks[num_bottom:]:
                longer_TD, _ = block(longer_TD, longer)
            found.append(decoder.final_norm(longer_TD[-1]))
    return torch.stack(found)


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_crossing_is_a_candidate_appended_to_its_request(make_crossed, make_batch, layers) -> None:
    assembly = make_crossed(layers)
    model, batch = assembly.model, make_batch(assembly)
    vector, crossing = model.both_logits(batch)
    state, items = model.encode_profile(batch.profile), model.item_vectors()
    candidate = model.candidate_tower(
        batch.candidates.item_rows, model.candidate_vectors(batch.candidates.item_rows, items)
    )
    crossed = naive_crossed(model, batch)
    expected = model.interaction(state.vector, candidate, batch.candidates.offsets, None, crossed)
    torch.testing.assert_close(crossing, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(batch), crossing)
    assert torch.equal(model.score(state, batch.candidates, mode="crossing"), crossing)
    assert torch.equal(model.score(state, batch.candidates, mode="vector"), vector)
    assert (crossing - vector).abs().min() > 1e-4, "the modes must differ to be worth comparing"


@torch.no_grad()
def test_the_vector_of_a_crossed_ranker_is_that_of_one_without(make_crossed, make_batch) -> None:
    crossed, plain = make_crossed(1), make_crossed(0)
    plain.model.load_state_dict(crossed.model.state_dict(), strict=False)
    batch = make_batch(crossed)
    vector, crossing = plain.model.both_logits(batch)
    assert crossing is None
    assert torch.equal(vector, crossed.model.both_logits(batch).vector)
    assert torch.equal(plain.model(batch), vector)


def test_the_crossing_loss_alone_reaches_keys_values_and_lower_layers(make_crossed, make_batch) -> None:
    assembly = make_crossed(1)
    model, batch = assembly.model.train(), make_batch(assembly)
    items, inputs = model.item_vectors(), batch.profile
    encoding = model.encode(inputs, items)
    state = encoding.state._replace(vector=encoding.vector.detach())
    model.score(state, batch.candidates, items).square().sum().backward()
    foundation = model.profile_tower.foundation
    parameters = dict(foundation.decoder.named_parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters.values())
    in_top = parameters["blocks.1.attention.project_in.weight"].grad
    assert all(part.any() for part in in_top.chunk(3)), "queries, keys and values each"
    assert foundation.facet_embedding.weight.grad.any()
    assert all(parameter.grad.any() for parameter in model.crossing.parameters())
    assert model.interaction.crossing_projection.weight.grad.any()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any), seed=st.integers(0, 99))
@torch.no_grad()
def test_a_score_depends_on_its_request_and_candidate_alone(crossed_and_batch, numbers, seed) -> None:
    model, profile = crossed_and_batch
    torch.manual_seed(seed)
    rows = torch.randint(0, 40, (sum(numbers),))
    offsets = torch.tensor([0, *numbers]).cumsum(0)
    state = model.encode_profile(profile)
    together = model.score(state, CandidateInputs.without_features(rows, offsets))
    for candidate in range(len(rows)):
        request = int(torch.searchsorted(offsets[1:], candidate, right=True))
        alone = torch.zeros(4, dtype=torch.long)
        alone[request] = 1
        of_one = torch.cat((offsets[:1], alone.cumsum(0)))
        found = model.score(state, CandidateInputs.without_features(rows[candidate, None], of_one))
        scale = together[candidate].abs().max().clamp(min=1)
        assert ((found[0] - together[candidate]).abs().max() / scale).item() <= 1e-6


@pytest.fixture
def crossed_and_batch(make_crossed, make_batch):
    """Weights as they start: larger ones would make rounding larger than what is allowed."""
    assembly = make_crossed(1, scale=1.0)
    return assembly.model, make_batch(assembly).profile


@torch.no_grad()
def test_requests_of_a_batch_do_not_change_one_another(make_crossed, make_batch, only_request) -> None:
    assembly = make_crossed(2)
    model, batch = assembly.model, make_batch(assembly)
    together, state = model(batch), model.encode_profile(batch.profile)
    assert state.key_values is not None
    bounds = state.key_values.offsets.tolist()
    for request in range(3):
        first, last = batch.candidates.offsets[request : request + 2].tolist()
        begin, end = bounds[request : request + 2]
        layers = tuple(type(layer)(*(x[begin:end] for x in layer)) for layer in state.key_values.layers)
        alone = state._replace(
            vector=state.vector[request : request + 1],
            key_values=state.key_values._replace(layers=layers, offsets=torch.tensor([0, end - begin])),
        )
        whole = model.score(alone, only_request(batch.candidates, request))
        torch.testing.assert_close(whole, together[first:last], rtol=1e-6, atol=1e-6)


class _Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


@torch.no_grad()
def test_no_key_or_value_is_repeated_for_a_candidate(make_crossed, make_batch) -> None:
    assembly = make_crossed(1)
    model, batch = assembly.model, make_batch(assembly)
    state = model.encode_profile(batch.profile)
    with _Shapes() as shapes:
        model.score(state, batch.candidates)
    seen = shapes.seen
    num_candidates, longest = len(batch.candidates.item_rows), batch.profile.dense_index.shape[1]
    heads, head_width = state.key_values.layers[0].keys_THK.shape[1:]
    assert (4, heads, longest, head_width) in seen, "keys padded by request"
    large = [shape for shape in seen if num_candidates in shape and longest in shape and head_width in shape]
    assert large == []


def test_settings_that_do_not_fit_are_named(make_crossed, synthetic_dataset, release) -> None:
    with pytest.raises(ValueError, match=r"RankerConfig\.crossing_layers is -1; it must be at least 0"):
        RankerConfig(crossing_layers=-1)
    with pytest.raises(ValueError, match="crossing_layers is 3; the release's decoder has 2 layers"):
        make_crossed(3)
    pooled = RankerConfig("pooled", crossing_layers=1)
    with pytest.raises(ValueError, match="crossing_layers is 1; the pooled tower has no decoder"):
        assemble_ranker(pooled, synthetic_dataset, release, TASKS)
    assert RankerConfig.from_json(pooled.to_json()) == pooled


def test_a_ranker_without_crossed_layers_refuses_the_mode(make_crossed, make_batch) -> None:
    assembly = make_crossed(0)
    batch = make_batch(assembly)
    state = assembly.model.encode_profile(batch.profile)
    assert state.key_values is None
    with pytest.raises(ValueError, match='mode is "crossing"; RankerConfig'):
        assembly.model.score(state, batch.candidates, mode="crossing")
