"""The candidate half of one request, in the forms that peers are given.

Shapes: C candidates, I item rows, K dot products, E dot-product width, H first hidden width, F width of the features,
D_profile profile vector width, D_candidate candidate vector width, N tasks.

    plain       relu(W [v ⊕ c ⊕ f ⊕ dots]): the profile repeated for every candidate, as the layer is written in papers
    decomposed  relu(W_c c + (W_p v + b) + W_f f + W_k dots): the profile's share once
    folded      relu(table[item] + (W_p v) + W_f f + W_k dots): what depends on the item alone looked up

In all forms c is looked up in a table of the item tower's output and the dot products are one matrix product:
`e·q = c·(W_e' q)`, so that candidates are never projected to the dot products' width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.crossing_graph import OneRequestCrossing
from ranker.arches.interaction import Interaction
from ranker.model import Ranker
from serving.split import CandidateGraph, ItemRows

Form = Literal["decomposed", "plain", "folded"]


class OneRequestCandidates(nn.Module):
    """Base of the three forms: features, dot products and what follows the first layer are the same in all.

    Args:
        ranker: whose candidate vectors and unfolded weights are taken.
        graph: the split's candidate half.
    """

    dot_queries: Tensor

    def __init__(self, ranker: Ranker, graph: CandidateGraph) -> None:
        super().__init__()
        source: Interaction = ranker.interaction
        assert source.cross is None and source.dot_weights is not None
        assert source.feature_projection is not None
        self.features = graph.features
        self.num_dots = source.num_dots
        q_KEP = source.profile_dots.weight.unflatten(0, (source.num_dots, source.dot_width))
        # W_e' q of all dot products as one layer over the profile: [K * D_candidate, D_profile].
        queries = torch.einsum("kep,ec->kcp", q_KEP, source.candidate_dots.weight).flatten(0, 1)
        self.register_buffer("dot_queries", queries.contiguous())
        assert isinstance(graph.interaction, Interaction)
        self.mlp, self.heads = graph.interaction.mlp, graph.interaction.heads
        self.crossed = None if graph.crossed is None else OneRequestCrossing(graph.crossed)

    def first_layer(self, vector: Tensor, item_rows: Tensor, beside: list[Tensor]) -> Tensor:
        """`[C, H]` before the activation; `beside` are the features `[C, F]` and, if it crosses, the crossed token."""
        raise NotImplementedError

    def forward(
        self, vector: Tensor, item_rows: Tensor, sparse: Tensor, dense: Tensor, *key_values: Tensor
    ) -> Tensor:
        """Logits `[C, N]`.

        Args:
            vector: `[1, D_profile]`.
            item_rows: `[C]`.
            sparse, dense: of the candidates in this request.
            key_values: `[T, H, K]` of the crossed layers.
        """
        beside = [self.features(sparse, dense)]
        if self.crossed is not None:
            beside.append(self.crossed(item_rows, *key_values))
        return self.heads(self.mlp(torch.relu(self.first_layer(vector, item_rows, beside))))


def _weights_beside(interaction: Interaction) -> Tensor:
    """`[F (+ D) + K, H]`: of features, of the crossed candidate, and of dot products."""
    assert interaction.feature_projection is not None and interaction.dot_weights is not None
    weights = [interaction.feature_projection.weight.T]
    if interaction.crossing_projection is not None:
        weights.append(interaction.crossing_projection.weight.T)
    return torch.cat([*weights, interaction.dot_weights])


class Decomposed(OneRequestCandidates):
    """One product over [c ⊕ f ⊕ dots] whose bias is the request's: the profile's share and the layer's own."""

    catalogue: Tensor
    weight: Tensor

    def __init__(self, ranker: Ranker, graph: CandidateGraph) -> None:
        super().__init__(ranker, graph)
        source = ranker.interaction
        self.register_buffer("catalogue", catalogue(ranker))
        of_candidate = source.candidate_projection
        self.register_buffer(
            "weight", torch.cat((of_candidate.weight.T, _weights_beside(source))).contiguous()
        )
        self.profile = nn.Linear(source.profile_projection.in_features, of_candidate.out_features)
        self.profile.load_state_dict({"weight": source.profile_projection.weight, "bias": of_candidate.bias})

    def first_layer(self, vector: Tensor, item_rows: Tensor, beside: list[Tensor]) -> Tensor:
        """See the module's docstring."""
        c = F.embedding(item_rows, self.catalogue)
        queries = F.linear(vector, self.dot_queries).view(self.num_dots, -1)
        return torch.addmm(self.profile(vector), torch.cat((c, *beside, c @ queries.T), dim=1), self.weight)


class Plain(OneRequestCandidates):
    """One product over [v ⊕ c ⊕ f ⊕ dots], v repeated for every candidate."""

    catalogue: Tensor

    def __init__(self, ranker: Ranker, graph: CandidateGraph) -> None:
        super().__init__(ranker, graph)
        source = ranker.interaction
        self.register_buffer("catalogue", catalogue(ranker))
        of_profile, of_candidate = source.profile_projection.weight.T, source.candidate_projection.weight.T
        weight = torch.cat((of_profile, of_candidate, _weights_beside(source)))
        self.layer = nn.Linear(weight.shape[0], weight.shape[1])
        self.layer.load_state_dict({"weight": weight.T, "bias": source.candidate_projection.bias})

    def first_layer(self, vector: Tensor, item_rows: Tensor, beside: list[Tensor]) -> Tensor:
        """See the module's docstring."""
        c = F.embedding(item_rows, self.catalogue)
        queries = F.linear(vector, self.dot_queries).view(self.num_dots, -1)
        v = vector.expand(item_rows.shape[0], -1)
        return self.layer(torch.cat((v, c, *beside, c @ queries.T), dim=1))


class Folded(OneRequestCandidates):
    """Both tables of the served candidate half looked up, and a narrow product beside them."""

    x_table: Tensor
    e_table: Tensor
    weight: Tensor

    def __init__(self, ranker: Ranker, graph: CandidateGraph) -> None:
        super().__init__(ranker, graph)
        source = ranker.interaction
        assert isinstance(graph.interaction, Interaction)
        of_candidate, of_dots = graph.interaction.candidate_projection, graph.interaction.candidate_dots
        assert isinstance(of_candidate, ItemRows) and isinstance(of_dots, ItemRows)
        self.register_buffer("x_table", of_candidate.table)
        self.register_buffer("e_table", of_dots.table)
        self.register_buffer("dot_queries", source.profile_dots.weight)
        self.register_buffer("weight", _weights_beside(source).contiguous())
        self.profile = source.profile_projection

    def first_layer(self, vector: Tensor, item_rows: Tensor, beside: list[Tensor]) -> Tensor:
        """See the module's docstring."""
        x, e = F.embedding(item_rows, self.x_table), F.embedding(item_rows, self.e_table)
        queries = F.linear(vector, self.dot_queries).view(self.num_dots, -1)
        # The profile's share is one more row of the weight: adding it to [C, H] would be a pass of its own.
        weight = torch.cat((self.weight, self.profile(vector)))
        ones = e.new_ones(e.shape[0], 1)
        return torch.addmm(x, torch.cat((*beside, e @ queries.T, ones), dim=1), weight)


FORMS: dict[Form, type[OneRequestCandidates]] = {
    "decomposed": Decomposed,
    "plain": Plain,
    "folded": Folded,
}


@torch.no_grad()
def catalogue(ranker: Ranker) -> Tensor:
    """Candidate vectors of all item rows, `[I, D_candidate]`."""
    rows = torch.arange(ranker.candidate_tower.item_dense.shape[0])
    return ranker.candidate_tower(rows, ranker.candidate_vectors(rows, ranker.item_vectors()))
