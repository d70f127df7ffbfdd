"""The ranker: a profile half, a candidate half, and `ProfileState` between them.

Shapes: B requests, C candidates over the batch, T packed tokens, I item rows, D decoder width, N tasks.

    forward(batch) == score(encode_profile(batch.profile), batch.candidates) == the last of both_logits(batch)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from foundation.item_tower import ItemVectors
from foundation.model import FoundationModel
from ranker.arches.candidate_features import CandidateFeatureArch
from ranker.arches.candidate_tower import CandidateTower
from ranker.arches.crossing import Crossing, check_crossing, crossing_layout
from ranker.arches.dense import DenseArch
from ranker.arches.interaction import Interaction, InteractionConfig, Widths
from ranker.arches.profile_tower import DecoderTower, PooledTower, ProfileEncoding
from ranker.arches.sparse import SparseArch
from ranker.arches.taps import ProfileConfig
from ranker.features.columns import place
from ranker.features.inputs import CandidateInputs, CandidateMarks, FeatureFields, ProfileInputs
from ranker.features.item_features import ItemFeatures
from ranker.state import Mode, ProfileState

TowerKind = Literal["decoder", "pooled"]


@dataclass(frozen=True)
class RankerConfig:
    """What a ranker is made of, apart from its data.

    Attributes:
        tower: `decoder` reads the history with the imported foundation model, `pooled` with bags of recent
            items and their genres.
        embedding_dim: width of a sparse feature's embedding; a multiple of 4.
        item_embedding_dim: width of item-id embeddings; a multiple of 4.
        recent_items: how many recent items the pooled tower's bags hold.
        interaction: widths of the interaction.
        crossing_layers: m, the decoder's top layers that a candidate passes through as a token, seeing its request's;
            0: it meets the profile vector alone.
        dense_widths: of the layers over dense features, of profiles and of candidates; none: they go in as they are.
        profile: what the profile's vector holds of the decoder, beside the release's own vector.
    """

    tower: TowerKind = "decoder"
    embedding_dim: int = 16
    item_embedding_dim: int = 32
    recent_items: int = 50
    interaction: InteractionConfig = field(default_factory=InteractionConfig)
    crossing_layers: int = 0
    dense_widths: tuple[int, ...] = ()
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        if self.tower not in ("decoder", "pooled"):
            raise ValueError(f"RankerConfig.tower is {self.tower!r}; it must be 'decoder' or 'pooled'")
        for name in ("embedding_dim", "item_embedding_dim"):
            if getattr(self, name) < 4 or getattr(self, name) % 4:
                raise ValueError(f"RankerConfig.{name} is {getattr(self, name)}; it must be a multiple of 4")
        if self.tower == "pooled" and self.profile.taps:
            raise ValueError(
                f"ProfileConfig.taps is {self.profile.taps}; the pooled tower has no layers to tap"
            )
        if min(self.dense_widths, default=1) < 1:
            raise ValueError(f"RankerConfig.dense_widths is {self.dense_widths}; widths must be positive")
        if self.recent_items < 1:
            raise ValueError(f"RankerConfig.recent_items is {self.recent_items}; it must be at least 1")
        if self.crossing_layers < 0:
            raise ValueError(f"RankerConfig.crossing_layers is {self.crossing_layers}; it must be at least 0")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `config.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RankerConfig:
        """The inverse of `to_json`."""
        interaction = InteractionConfig(**_tuples(values["interaction"]))
        profile = ProfileConfig(**_tuples(values["profile"]))
        return cls(**{**_tuples(values), "interaction": interaction, "profile": profile})


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class RankerInputs(NamedTuple):
    """One batch: requests once each, candidates jagged."""

    profile: ProfileInputs
    candidates: CandidateInputs
    marks: CandidateMarks | None = None
    """What training hides of candidates; read by `score_both` alone."""


class BothLogits(NamedTuple):
    """Logits `[C, N]` of one batch in either mode."""

    vector: Tensor
    crossing: Tensor | None
    """None where no layers are crossed."""


class Ranker(nn.Module):
    """Ranks the candidates of a request for its profile; the decoder runs once per request.

    Args:
        config: sizes and the kind of profile tower.
        fields: features of profiles and of candidates.
        items: the catalogue's static features.
        tasks: names of the N tasks, in the order of the logits' columns.
        foundation: the decoder; required by the `decoder` tower and refused by the `pooled` one.

    Raises:
        ValueError: `foundation` and `config.tower` disagree, dot products are narrower than the decoder, or candidates
            can't pass through `config.crossing_layers` of it.
    """

    def __init__(
        self,
        config: RankerConfig,
        fields: FeatureFields,
        items: ItemFeatures,
        tasks: Sequence[str],
        foundation: FoundationModel | None = None,
    ) -> None:
        super().__init__()
        if (foundation is None) == (config.tower == "decoder"):
            need = "needs a foundation model" if config.tower == "decoder" else "takes no foundation model"
            raise ValueError(f"RankerConfig.tower is {config.tower!r}, which {need}")
        if not tasks:
            raise ValueError("a ranker needs at least one task; tasks is empty")
        check_crossing(config.crossing_layers, foundation)
        self.config = config
        self.tasks = tuple(tasks)
        dims = (config.embedding_dim, config.item_embedding_dim)
        sparse = SparseArch(place(fields.profile.sparse, *dims))
        dense = DenseArch(fields.profile.num_dense, config.dense_widths)
        self.profile_tower: DecoderTower | PooledTower = (
            PooledTower(sparse, dense)
            if foundation is None
            else DecoderTower(foundation, sparse, dense, config.profile, config.crossing_layers)
        )
        item_width = self.profile_tower.item_width
        self.candidate_tower = CandidateTower(
            SparseArch(place(items.fields, *dims)), items, item_width, config.dense_widths
        )
        self.candidate_features = CandidateFeatureArch(
            fields.candidates, config.embedding_dim, config.dense_widths
        )
        widths = Widths(
            self.profile_tower.width,
            self.candidate_tower.width,
            self.candidate_features.width,
            item_width if config.crossing_layers else 0,
        )
        self.interaction = Interaction(config.interaction, widths, len(self.tasks))
        if foundation is not None:
            self.interaction.start_from_shared_space(item_width, scale=1 / foundation.config.temperature)
        self.crossing = Crossing(item_width) if config.crossing_layers else None

    def item_vectors(self) -> ItemVectors | None:
        """The decoder's item vectors, None without a decoder.

        The methods below compute them when they are not given. Pass them to compute them once a step, or to
        fold them at export.
        """
        return self.profile_tower.item_vectors()

    def candidate_vectors(
        self, item_rows: Tensor, item_vectors: ItemVectors | None, marks: CandidateMarks | None = None
    ) -> Tensor | None:
        """Item vectors `[C, D]` of candidates, None without a decoder; arguments as of `score_both`."""
        tower = self.profile_tower
        if item_vectors is None or not isinstance(tower, DecoderTower):
            return None
        vectors = item_vectors.vectors.index_select(0, item_rows)
        if marks is None:
            return vectors
        item_tower = tower.foundation.item_tower
        hidden = torch.ones_like(item_tower.counts, dtype=torch.bool)
        never_seen = marks.never_seen.nonzero().squeeze(1)
        as_new = item_tower(item_rows.index_select(0, never_seen), hidden).vectors
        return vectors.index_copy(0, never_seen, as_new).masked_fill(marks.without_decoder[:, None], 0.0)

    def encode(self, profile: ProfileInputs, item_vectors: ItemVectors | None = None) -> ProfileEncoding:
        """Run the profile tower; returns its vector and the hidden states that the auxiliary loss needs."""
        if item_vectors is None:
            item_vectors = self.item_vectors()
        return self.profile_tower(profile, item_vectors)

    def encode_profile(self, profile: ProfileInputs, item_vectors: ItemVectors | None = None) -> ProfileState:
        """The profile half: everything that is computed once per request."""
        return self.encode(profile, item_vectors).state

    def mode(self, asked: Mode | None = None) -> Mode:
        """How candidates are scored: as asked; None: they cross the decoder if the ranker has crossed layers.

        Raises:
            ValueError: if they are to cross and it has none.
        """
        if asked == "crossing" and self.crossing is None:
            raise ValueError(
                'mode is "crossing"; RankerConfig.crossing_layers must be at least 1 for it, it is 0'
            )
        return asked or ("vector" if self.crossing is None else "crossing")

    def score(
        self,
        state: ProfileState,
        candidates: CandidateInputs,
        item_vectors: ItemVectors | None = None,
        mode: Mode | None = None,
    ) -> Tensor:
        """The candidate half: logits `[C, N]` of candidates against the state of their requests.

        Args:
            state: from `encode_profile`.
            candidates: of the same requests.
            item_vectors: from `item_vectors()`.
            mode: as in `mode`.
        """
        if item_vectors is None:
            item_vectors = self.item_vectors()
        crossed, vectors = None, self.candidate_vectors(candidates.item_rows, item_vectors)
        if self.mode(mode) == "crossing":
            crossed = self._crossed(state, candidates, vectors)
        candidate = self.candidate_tower(candidates.item_rows, vectors)
        features = self.candidate_features(candidates.sparse, candidates.dense)
        return self.interaction(state.vector, candidate, candidates.offsets, features, crossed)

    def score_both(
        self,
        state: ProfileState,
        candidates: CandidateInputs,
        item_vectors: ItemVectors | None = None,
        marks: CandidateMarks | None = None,
    ) -> BothLogits:
        """Logits of both modes, for which one pass over the candidates' towers is enough.

        Args:
            state: from `encode_profile`.
            candidates: of the same requests.
            item_vectors: from `item_vectors()`.
            marks: what is hidden of them.
        """
        if item_vectors is None:
            item_vectors = self.item_vectors()
        vectors = self.candidate_vectors(candidates.item_rows, item_vectors, marks)
        never_seen = None if marks is None else marks.never_seen
        candidate = self.candidate_tower(candidates.item_rows, vectors, never_seen)
        features = self.candidate_features(candidates.sparse, candidates.dense)
        vector = self.interaction(state.vector, candidate, candidates.offsets, features)
        if self.crossing is None:
            return BothLogits(vector, None)
        crossed = self._crossed(state, candidates, vectors)
        if marks is not None:
            crossed = crossed.masked_fill(marks.without_decoder[:, None], 0.0)
        return BothLogits(
            vector, self.interaction(state.vector, candidate, candidates.offsets, features, crossed)
        )

    def both_logits(self, batch: RankerInputs) -> BothLogits:
        """Logits of both modes; the decoder runs once per request for both."""
        item_vectors = self.item_vectors()
        state = self.encode_profile(batch.profile, item_vectors)
        return self.score_both(state, batch.candidates, item_vectors, batch.marks)

    def _crossed(self, state: ProfileState, candidates: CandidateInputs, vectors: Tensor | None) -> Tensor:
        tower, stored = self.profile_tower, state.key_values
        assert isinstance(tower, DecoderTower) and vectors is not None
        assert self.crossing is not None and stored is not None
        where = crossing_layout(stored, candidates.offsets)
        return self.crossing(vectors, tower.foundation.decoder, where, stored.layers)

    def forward(self, batch: RankerInputs) -> Tensor:
        """Logits `[C, N]`, of candidates that cross the decoder if it has crossed layers."""
        item_vectors = self.item_vectors()
        return self.score(self.encode_profile(batch.profile, item_vectors), batch.candidates, item_vectors)
