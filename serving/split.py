"""The trained ranker cut at `ProfileState` into the two graphs that are served.

Shapes: B requests, T packed tokens, S longest token sequence, C candidates over the batch, X most candidates of a
request, I item rows, m crossed layers, H heads, K head width, D_profile profile vector width, N tasks.

    vector mode      ProfileGraph    ProfileInputs              -> vector [B, D_profile]       once per request
                     CandidateGraph  vector, CandidateInputs    -> logits [C, N]
    crossing mode    ProfileGraph    ProfileInputs              -> vector, keys and values m times [T, H, K]
                     CandidateGraph  vector, CandidateInputs, Branches, keys and values  -> logits [C, N]

Both are the ranker's own modules. The decoder's top layer is computed where it is read: at each request's own token
alone, unless the ranker reads more of it (`ranker.arches.last_token_tower`). What depends on the item alone is
computed here, once, for every row of the catalogue: the decoder's item vectors, the candidate tower with the
projections behind it, and candidate tokens.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from foundation.branches import Branches
from foundation.decoder import Decoder
from foundation.foreign.packed import PackedForeign
from foundation.item_tower import ItemVectors
from foundation.key_values import LayerKeyValues
from foundation.layout import Layout
from ranker.arches.candidate_features import CandidateFeatureArch
from ranker.arches.crossing import Crossing
from ranker.arches.interaction import Interaction
from ranker.arches.last_token_tower import LastTokenTower, reads_last_tokens_alone
from ranker.arches.profile_tower import DecoderTower, PooledTower
from ranker.arches.sparse import PaddedSparseArch, SparseArch
from ranker.features.inputs import CandidateInputs, ProfileInputs
from ranker.model import Ranker
from ranker.state import Mode
from serving.candidate_arguments import candidate_arguments
from serving.programs import Shapes

Tower = DecoderTower | LastTokenTower | PooledTower


class ProfileGraph(nn.Module):
    """The profile half with the item tower folded into a constant table."""

    def __init__(self, tower: Tower, items: ItemVectors | None) -> None:
        super().__init__()
        self.tower = tower
        self._tables = () if items is None else _tables(tower, items)
        for name in self._tables:
            self.register_buffer(name, getattr(items, name))

    def item_vectors(self) -> ItemVectors | None:
        """Those that were given; what the tower doesn't read is a table without rows."""
        if not self._tables:
            return None
        nothing = getattr(self, self._tables[0])[:0]  # torch.empty would stay in the exported graph
        return ItemVectors(
            *(getattr(self, name) if name in self._tables else nothing for name in ItemVectors._fields)
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`ProfileInputs`, spread, to `ProfileState`, spread: the vector, then each crossed layer's keys and values."""
        vector, key_values = self.tower(ProfileInputs(*inputs), self.item_vectors()).state
        layers = () if key_values is None else key_values.layers
        return (vector, *(tensor for layer in layers for tensor in layer))


def _tables(tower: Tower, items: ItemVectors) -> tuple[str, ...]:
    """Names of the tables that the decoder reads: without ages of items, their vectors alone."""
    aged = not isinstance(tower, PooledTower) and tower.foundation.age_column is not None
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
    """The candidate half: the ranker's interaction, its candidate projections looked up, not computed.

    Args:
        features: of candidates in their requests.
        interaction: with `ItemRows` for what reads the item alone.
        crossed: what candidates pass through before; None: they meet the profile vector alone.
    """

    def __init__(
        self, features: CandidateFeatureArch, interaction: Interaction, crossed: CrossedLayers | None = None
    ) -> None:
        super().__init__()
        self.features: nn.Module = features  # `serving.fuse` swaps it
        self.interaction: nn.Module = interaction  # `serving.fuse` swaps it
        self.crossed = crossed

    def forward(
        self,
        vector: Tensor,
        item_rows: Tensor,
        offsets: Tensor,
        sparse: Tensor,
        dense: Tensor,
        *where: Tensor,
    ) -> tuple[Tensor]:
        """What `candidate_arguments` gives to logits `[C, N]`."""
        crossed = None if self.crossed is None else self.crossed(item_rows, *where)
        return (self.interaction(vector, item_rows, offsets, self.features(sparse, dense), crossed),)


class CrossedLayers(nn.Module):
    """The decoder's top layers, and the tokens of all items below them."""

    def __init__(self, crossing: Crossing, decoder: Decoder | PackedForeign) -> None:
        super().__init__()
        self.crossing = crossing
        self.decoder = decoder

    def forward(self, item_rows: Tensor, *where: Tensor) -> Tensor:
        """Item rows `[C]`, `Branches` and keys and values, both spread, to crossed candidates `[C, D]`."""
        tensors = iter(where)
        layout = Layout(*(next(tensors) for _ in Layout._fields))
        branches = Branches(layout, next(tensors), next(tensors))
        stored = tuple(LayerKeyValues(keys, next(tensors)) for keys in tensors)
        return self.crossing(item_rows, self.decoder, branches, stored)


class Halves(NamedTuple):
    """Both graphs, in evaluation mode; they share no memory with the ranker they were cut from."""

    profile: ProfileGraph
    candidate: CandidateGraph

    def rank(self, profile: ProfileInputs, candidates: CandidateInputs) -> Tensor:
        """Logits `[C, N]`: the profile graph once per request, the candidate graph over all."""
        return self.candidate(*candidate_arguments(self.profile(*profile), profile, candidates))[0]


@torch.no_grad()
def split(ranker: Ranker, mode: Mode | None = None) -> Halves:
    """Cut a copy of an unsharded ranker; the ranker itself stays as it is.

    The candidate half's tables hold `4 (H + E)` bytes for each item row (first hidden width, dot-product width): 1.3 kB
    with the default widths, 5 MB for four thousand items; `4 D` more for candidate tokens, 4 by the width of what a
    cross network reads. The profile half has the item vectors, another `4 D`, twice where tokens tell an item's age.
    While cutting, the copied ranker and its catalogue of vectors are in memory beside them.

    Args:
        ranker: in either mode of training.
        mode: how candidates are scored; None: as by the ranker's own `forward`.

    Raises:
        ValueError: if candidates are to cross the decoder and the ranker has no crossed layers.
    """
    ranker = copy.deepcopy(ranker).eval()
    item_vectors = ranker.item_vectors()
    rows = torch.arange(ranker.candidate_tower.item_dense.shape[0])
    vectors = ranker.candidate_vectors(rows, item_vectors)
    crossed = _take_crossing(ranker, mode, vectors)
    catalogue = ranker.candidate_tower(rows, vectors)
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
        if reads_last_tokens_alone(tower):
            tower = LastTokenTower(tower)
    profile, candidate = ProfileGraph(tower, item_vectors), CandidateGraph(features, interaction, crossed)
    return Halves(profile.eval(), candidate.eval())


def _take_crossing(ranker: Ranker, mode: Mode | None, vectors: Tensor | None) -> CrossedLayers | None:
    """What candidates pass through; in vector mode nothing, and nothing of it is left in `ranker` then."""
    tower, crossing = ranker.profile_tower, ranker.crossing
    mode = ranker.mode(mode)
    if mode == "vector" or crossing is None:
        ranker.interaction.crossing_projection = None
        if isinstance(tower, DecoderTower):
            tower.crossing_layers = 0
        return None
    assert isinstance(tower, DecoderTower) and vectors is not None
    crossing.token = ItemRows(crossing.token(vectors))
    decoder = copy.deepcopy(tower.foundation.decoder)
    if isinstance(decoder, Decoder):
        decoder.blocks = decoder.blocks[-tower.crossing_layers :]
    return CrossedLayers(crossing, decoder)


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


def candidate_shapes(num_crossed: int = 0) -> Shapes:
    """Dynamic dimensions of the candidate graph's inputs; `num_crossed` is m."""
    requests, candidates = Dim("B", min=1), Dim("C", min=1)
    inputs = ({0: requests}, {0: candidates}, {0: requests + 1}, {0: candidates}, {0: candidates})
    if not num_crossed:
        return inputs
    tokens, longest, most = Dim("T", min=1), Dim("S", min=1), Dim("X", min=1)
    layout = ({0: requests, 1: most}, {0: candidates}, {0: candidates}, {0: requests})
    where = (*layout, {0: requests, 1: longest}, {0: requests})
    return (*inputs, *where, *({0: tokens} for _ in range(2 * num_crossed)))
