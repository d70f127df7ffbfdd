"""The trained ranker cut at `ProfileState` into the two graphs that are served.

Shapes: B requests, T packed tokens, S longest token sequence, C candidates over the batch, I item rows,
D_profile profile vector width, N tasks.

    ProfileGraph    ProfileInputs                         -> vector [B, D_profile]   once per request
    CandidateGraph  vector, CandidateInputs               -> logits [C, N]

Both are the ranker's own modules. What depends on the item alone is computed here, once, for every row of the
catalogue: the decoder's item vectors, and the candidate tower with the two projections behind it.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from foundation.item_tower import ItemVectors
from ranker.arches.candidate_features import CandidateFeatureArch
from ranker.arches.interaction import Interaction
from ranker.arches.profile_tower import DecoderTower, PooledTower
from ranker.arches.sparse import PaddedSparseArch, SparseArch
from ranker.features.inputs import ProfileInputs
from ranker.model import Ranker
from serving.programs import Shapes


class ProfileGraph(nn.Module):
    """The profile half with the item tower folded into a constant table."""

    def __init__(self, tower: DecoderTower | PooledTower, items: ItemVectors | None) -> None:
        super().__init__()
        self.tower = tower
        self._tables = () if items is None else _tables(tower, items)
        for name in self._tables:
            self.register_buffer(name, getattr(items, name))

    def item_vectors(self) -> ItemVectors | None:
        """Those that were given; what the tower doesn't read is a table without rows."""
        if not self._tables:
            return None
        nothing = torch.empty(0)
        return ItemVectors(
            *(getattr(self, name) if name in self._tables else nothing for name in ItemVectors._fields)
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """`ProfileInputs`, spread, to the profile vector `[B, D_profile]`."""
        return self.tower(ProfileInputs(*inputs), self.item_vectors()).vector


def _tables(tower: DecoderTower | PooledTower, items: ItemVectors) -> tuple[str, ...]:
    """Names of the tables that the decoder reads: without ages of items, their vectors alone."""
    aged = isinstance(tower, DecoderTower) and tower.foundation.age_column is not None
    return items._fields if aged else ("vectors",)


class ItemRows(nn.Module):
    """A linear layer over item vectors, computed for the whole catalogue: rows `[C]` to `[C, width]`."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, rows: Tensor) -> Tensor:
        """Take rows."""
        return self.table.index_select(0, rows)


class CandidateGraph(nn.Module):
    """The candidate half: the ranker's interaction, its candidate projections looked up, not computed."""

    def __init__(self, features: CandidateFeatureArch, interaction: Interaction) -> None:
        super().__init__()
        self.features = features
        self.interaction = interaction

    def forward(
        self, vector: Tensor, item_rows: Tensor, offsets: Tensor, sparse: Tensor, dense: Tensor
    ) -> Tensor:
        """The profile vectors `[B, D_profile]` and `CandidateInputs`, spread, to logits `[C, N]`."""
        return self.interaction(vector, item_rows, offsets, self.features(sparse, dense))


class Halves(NamedTuple):
    """Both graphs, in evaluation mode; they share no memory with the ranker they were cut from."""

    profile: ProfileGraph
    candidate: CandidateGraph


@torch.no_grad()
def split(ranker: Ranker) -> Halves:
    """Cut a copy of an unsharded ranker; the ranker itself stays as it is.

    The tables hold `4 (H + E)` bytes for each item row (first hidden width, dot-product width): 1.3 kB with
    the default widths, 5 MB for four thousand items.
    """
    ranker = copy.deepcopy(ranker).eval()
    item_vectors = ranker.item_vectors()
    num_rows = ranker.candidate_tower.item_dense.shape[0]
    rows = torch.arange(num_rows)
    catalogue = ranker.candidate_tower(rows, ranker.candidate_vectors(rows, item_vectors))
    interaction = ranker.interaction
    for name in interaction.item_projections:
        interaction.set_submodule(name, ItemRows(interaction.get_submodule(name)(catalogue)))
    tower = ranker.profile_tower
    assert isinstance(tower.sparse, SparseArch)
    tower.sparse = PaddedSparseArch.from_sparse(tower.sparse)
    features = ranker.candidate_features
    if isinstance(features.sparse, SparseArch):
        features.sparse = PaddedSparseArch.from_sparse(features.sparse)
    if isinstance(tower, DecoderTower):
        # Its vectors are in the table; left here its weights would be saved and loaded for nothing.
        del tower.foundation.item_tower
    return Halves(ProfileGraph(tower, item_vectors).eval(), CandidateGraph(features, interaction).eval())


def profile_shapes() -> Shapes:
    """Dynamic dimensions of the profile graph's inputs."""
    requests, tokens, longest = Dim("B", min=1), Dim("T", min=1), Dim("S", min=1)
    shapes = {
        "facet_ids": {0: tokens},
        "item_ids": {0: tokens},
        "dense_index": {0: requests, 1: longest},
        "packed_index": {0: tokens},
        "positions": {0: tokens},
        "last_index": {0: requests},
        "sparse": {0: requests},
        "dense": {0: requests},
    }
    return tuple(shapes[name] for name in ProfileInputs._fields)


def candidate_shapes() -> Shapes:
    """Dynamic dimensions of the candidate graph's inputs."""
    requests, candidates = Dim("B", min=1), Dim("C", min=1)
    return ({0: requests}, {0: candidates}, {0: requests + 1}, {0: candidates}, {0: candidates})
