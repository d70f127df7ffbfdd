"""The ranker: its cut, its gradients, isolation of candidates, and export of both halves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foundation.objectives.softmax import next_item_loss
from ranker.arches.interaction import InteractionConfig
from ranker.arches.profile_tower import DecoderTower
from ranker.arches.sparse import PaddedSparseArch, SparseArch
from ranker.features.inputs import CandidateInputs, ProfileInputs
from ranker.features.item_features import build_item_features
from ranker.model import Ranker, RankerConfig
from ranker.state import ProfileState

TOWERS = ("decoder", "pooled")


@pytest.mark.parametrize("tower", TOWERS)
def test_forward_is_score_of_encode_profile(make_assembly, make_batch, tower) -> None:
    assembly = make_assembly(tower)
    model, batch = assembly.model, make_batch(assembly)
    logits = model(batch)
    assert logits.shape == (11, 2)
    assert torch.isfinite(logits).all()
    assert torch.equal(model.score(model.encode_profile(batch.profile), batch.candidates), logits)


def test_decoder_and_item_tower_run_once_a_forward(make_assembly, make_batch) -> None:
    assembly = make_assembly("decoder")
    calls = {"decoder.blocks.0": 0, "item_tower": 0}
    foundation = assembly.model.profile_tower.foundation
    for name in calls:

        def count(*_, name: str = name) -> None:
            calls[name] += 1

        foundation.get_submodule(name).register_forward_hook(count)
    assembly.model(make_batch(assembly))
    assert calls == {"decoder.blocks.0": 1, "item_tower": 1}


@pytest.mark.parametrize("tower", TOWERS)
def test_every_parameter_gets_a_gradient(make_assembly, make_batch, tower) -> None:
    assembly = make_assembly(tower)
    model, batch = assembly.model.train(), make_batch(assembly)
    item_vectors = model.item_vectors()
    encoding = model.encode(batch.profile, item_vectors)
    logits = model.score(ProfileState(encoding.vector), batch.candidates, item_vectors)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    if encoding.hidden is not None:
        targets = batch.profile.item_ids.roll(-1)
        loss = loss + next_item_loss(encoding.hidden, item_vectors.vectors, targets, temperature=0.05)[0]
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    decoder = [parameter for name, parameter in model.named_parameters() if "foundation.decoder" in name]
    assert len(decoder) > 0 if tower == "decoder" else len(decoder) == 0
    assert all(parameter.grad.any() for parameter in decoder)


def test_the_ranking_loss_alone_reaches_the_decoder(make_assembly, make_batch) -> None:
    assembly = make_assembly("decoder")
    assembly.model(make_batch(assembly)).sum().backward()
    gradients = {name: p.grad for name, p in assembly.model.profile_tower.foundation.named_parameters()}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_the_foundations_own_logit_is_a_feature_from_the_start(make_assembly, make_batch) -> None:
    assembly = make_assembly("decoder")
    model, batch = assembly.model, make_batch(assembly)
    foundation, item_vectors = model.profile_tower.foundation, model.item_vectors()
    encoding = model.encode(batch.profile, item_vectors)
    interaction, request = model.interaction, 1
    first, last = batch.candidates.offsets[request : request + 2].tolist()
    rows = batch.candidates.item_rows[first:last]
    query = interaction.profile_dots(encoding.vector[request]).view(interaction.num_dots, -1)[0]
    dots = interaction.candidate_dots(model.candidate_tower(rows, item_vectors.vectors[rows])) @ query
    hidden = foundation.profile_vector(encoding.hidden, batch.profile.layout)[request]
    expected = foundation.logits(hidden, item_vectors.vectors)[rows]
    torch.testing.assert_close(dots, expected, rtol=1e-5, atol=1e-5)
    assert (expected.max() - expected.min()).item() > 0.1


@pytest.mark.parametrize("tower", TOWERS)
def test_a_score_depends_on_its_request_and_candidate_only(
    make_assembly, make_batch, only_request, synthetic_dataset, raw_histories, tower
) -> None:
    assembly = make_assembly(tower)
    model, batch = assembly.model, make_batch(assembly)
    together = model(batch)
    state = model.encode_profile(batch.profile)
    for request in range(3):
        first, last = batch.candidates.offsets[request : request + 2].tolist()
        vector = state.vector[request : request + 1]
        whole = model.score(ProfileState(vector), only_request(batch.candidates, request))
        torch.testing.assert_close(whole, together[first:last], rtol=1e-6, atol=1e-6)
        for candidate in range(first, last):
            rows = batch.candidates.item_rows[candidate : candidate + 1]
            alone = model.score(
                ProfileState(vector), CandidateInputs.without_features(rows, torch.tensor([0, 1]))
            )
            torch.testing.assert_close(alone[0], together[candidate], rtol=1e-6, atol=1e-6)


def test_duplicate_candidates_score_alike(make_assembly, make_batch) -> None:
    assembly = make_assembly("decoder")
    batch = make_batch(assembly)
    assert batch.candidates.item_rows[0] == batch.candidates.item_rows[2]
    logits = assembly.model(batch)
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-6, atol=1e-6)


class _Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def test_scoring_makes_nothing_of_candidates_by_profile_width(make_assembly, make_batch) -> None:
    class RequestByRequest(nn.Module):
        """Stands in for a fused first layer: reads the profile's share in place."""

        def forward(self, x, e, p, q, w, offsets):
            out = torch.empty_like(x)
            for b, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
                out[first:last] = torch.relu(x[first:last] + p[b] + e[first:last] @ q[b].T @ w)
            return out

    assembly = make_assembly("decoder")
    model, batch = assembly.model, make_batch(assembly)
    state = model.encode_profile(batch.profile)
    expected = model.score(state, batch.candidates)
    model.interaction.first_layer = RequestByRequest()
    with _Shapes() as shapes:
        logits = model.score(state, batch.candidates)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    num_candidates = len(batch.candidates.item_rows)
    by_candidate = {shape[1:] for shape in shapes.seen if shape[:1] == (num_candidates,)}
    assert (model.candidate_tower.width,) in by_candidate
    assert (model.profile_tower.width,) not in by_candidate
    assert not any(len(shape) > 1 for shape in by_candidate)


class _ProfileHalf(nn.Module):
    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model.encode_profile(ProfileInputs(*inputs)).vector


class _CandidateHalf(nn.Module):
    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.model = model

    def forward(self, vector: torch.Tensor, *candidates: torch.Tensor) -> torch.Tensor:
        return self.model.score(ProfileState(vector), CandidateInputs(*candidates))


def exportable(model: Ranker) -> Ranker:
    """A copy with both sparse parts swapped for their twins."""
    model = copy.deepcopy(model)
    for half in (model.profile_tower, model.candidate_tower):
        assert isinstance(half.sparse, SparseArch)
        half.sparse = PaddedSparseArch.from_sparse(half.sparse)
    return model.eval()


@pytest.mark.parametrize("tower", TOWERS)
def test_both_halves_export_with_dynamic_shapes(
    synthetic_dataset, raw_histories, make_assembly, make_batch, tower
) -> None:
    assembly = make_assembly(tower)
    batch, twin = make_batch(assembly), exportable(assembly.model)
    b, t, s, c = Dim("B"), Dim("T"), Dim("S"), Dim("C")
    profile_shapes = ({0: t}, {0: t}, {0: b, 1: s}, {0: t}, {0: t}, {0: b}, {0: b}, {0: b})
    with torch.no_grad():
        profile = torch.export.export(
            _ProfileHalf(twin), tuple(batch.profile), dynamic_shapes=(profile_shapes,)
        ).module()
        state = assembly.model.encode_profile(batch.profile)
        arguments = (state.vector, *batch.candidates)
        candidate = torch.export.export(
            _CandidateHalf(twin),
            arguments,
            dynamic_shapes=({0: b}, ({0: c}, {0: b + 1}, {0: c}, {0: c})),
        ).module()
        others = assembly.features.profile_inputs(
            raw_histories(synthetic_dataset, [3, 9, 4, 5, 6, 2, 8], [9, 1, 4, 6, 0, 3, 2])
        )
        rows = torch.arange(5)
        for inputs, candidates in (
            (batch.profile, batch.candidates),
            (others, CandidateInputs.without_features(rows, torch.tensor([0, 0, 2, 2, 3, 3, 4, 5]))),
        ):
            expected = assembly.model.score(assembly.model.encode_profile(inputs), candidates)
            logits = candidate(profile(*inputs), *candidates)
            difference = (logits - expected).abs().max() / max(1.0, expected.abs().max().item())
            assert difference <= 1e-5


def test_configs_name_what_is_wrong(make_assembly, synthetic_dataset) -> None:
    model, features = make_assembly("decoder")
    fields = features.fields
    items = build_item_features(synthetic_dataset, features.tokenizer.vocabularies)
    assert isinstance(model.profile_tower, DecoderTower)
    with pytest.raises(ValueError, match="'decoder', which needs a foundation model"):
        Ranker(RankerConfig("decoder"), fields, items, ["watch"])
    with pytest.raises(ValueError, match="'pooled', which takes no foundation model"):
        Ranker(RankerConfig("pooled"), fields, items, ["watch"], model.profile_tower.foundation)
    with pytest.raises(ValueError, match="tasks is empty"):
        Ranker(RankerConfig("pooled"), fields, items, [])
    wrong: dict[str, Any] = {"tower": "mlp", "embedding_dim": 6, "item_embedding_dim": 0, "recent_items": 0}
    for field, value in wrong.items():
        with pytest.raises(ValueError, match=f"RankerConfig.{field} is "):
            RankerConfig(**{field: value})


def test_config_survives_json() -> None:
    config = RankerConfig("pooled", 8, 12, 7, InteractionConfig(2, 16, (32, 16, 8)))
    assert RankerConfig.from_json(config.to_json()) == config
