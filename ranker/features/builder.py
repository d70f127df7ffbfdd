"""From raw requests to model inputs: the one library used by co-training and by the server.

Shapes: B requests, T packed tokens (history and one request token each), S longest token sequence,
C candidates over the batch, F token facet columns, W id columns, X dense columns, R recent items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.layout import layout
from foundation.tokenizer import Tokenizer, history_tokens
from foundation.vocabulary import OUT_OF_VOCABULARY
from foundation.window import WindowConfig
from ranker.features.candidate_features import CandidateColumns, CandidateFeatures
from ranker.features.columns import SparseField
from ranker.features.histories import Histories
from ranker.features.inputs import (
    CandidateInputs,
    FeatureFields,
    ProfileFeatures,
    ProfileFields,
    ProfileInputs,
    TokenizedHistories,
)
from ranker.features.item_features import feature_field, scale
from ranker.features.recent_items import RecentItems

REQUEST_CONTEXT = "request_context"
SECONDS_PER_HOUR = 3600
# They bring the two log-scaled request features to about [0, 1]: a thousand events, a year.
LOG_EVENTS_SCALE = float(np.log1p(1_000))
LOG_HOURS_SCALE = float(np.log1p(365 * 24))
NUM_REQUEST_DENSE = 2


@dataclass(frozen=True)
class NumberScale:
    """Mean and standard deviation of a numeric profile feature over the training profiles."""

    name: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class FeatureConfig:
    """What the feature builder needs besides schema and vocabularies.

    Attributes:
        window: how much of a history a request carries: at most `window.window` events.
        scales: of every numeric profile feature, in the schema's order.
        candidates: features that a candidate has in one request only.
    """

    window: WindowConfig
    scales: tuple[NumberScale, ...] = ()
    candidates: CandidateFeatures = field(default_factory=CandidateFeatures)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `features.json`."""
        scales = [asdict(number) for number in self.scales]
        return {"window": asdict(self.window), "scales": scales, "candidates": self.candidates.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FeatureConfig:
        """The inverse of `to_json`."""
        scales = tuple(NumberScale(**plain) for plain in values["scales"])
        candidates = CandidateFeatures.from_json(values["candidates"])
        return cls(WindowConfig(**values["window"]), scales, candidates)


class FeatureBuilder:
    """Builds model inputs; no value depends on the other requests of a batch.

    Args:
        config: limits and scales.
        tokenizer: of the foundation release.
        recent: bags of recent items for the pooled tower; None for the decoder tower.

    Attributes:
        fields: what the `sparse` and `dense` columns hold.
    """

    def __init__(
        self, config: FeatureConfig, tokenizer: Tokenizer, recent: RecentItems | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.recent = recent
        self._features = tokenizer.schema.profile_features
        numeric = tuple(feature.name for feature in self._features if feature.kind == "numeric")
        scaled = tuple(number.name for number in config.scales)
        if scaled != numeric:
            raise ValueError(
                f"FeatureConfig.scales are of {scaled}; the schema's numeric profile features are {numeric}"
            )
        vocabularies = tokenizer.vocabularies.profile_features
        declared = [feature_field(feature, vocabularies[feature.name].num_rows) for feature in self._features]
        # As in the decoder, the embeddings of the request's own columns are summed.
        context = SparseField(
            REQUEST_CONTEXT, tokenizer.context_columns.stop, tokenizer.num_facet_rows, "sum"
        )
        profile = ProfileFields(
            (context, *declared, *(recent.fields if recent else ())), NUM_REQUEST_DENSE + len(scaled)
        )
        self.fields = FeatureFields(profile, config.candidates.fields)

    def profile_inputs(self, histories: Histories) -> ProfileInputs:
        """Model inputs of raw requests: what the server calls.

        Unknown ids and values become out of vocabulary; an empty history and a timestamp ahead of the clock
        are fine.

        Raises:
            ValueError: if lengths don't add up, or a history is longer than the window.
        """
        return self.assemble(self.tokenize(histories))

    def tokenize(self, histories: Histories) -> TokenizedHistories:
        """Look up raw requests; see `profile_inputs`."""
        lengths = np.asarray(histories.history_lengths, dtype=np.int64)
        if lengths.min(initial=0) < 0 or lengths.sum() != len(histories.item_id):
            raise ValueError(
                f"history_lengths add up to {lengths.sum()} (smallest: {lengths.min(initial=0)});"
                f" item_id has {len(histories.item_id)} events"
            )
        return TokenizedHistories(
            history=self.tokenizer.event_ids(histories.item_id, histories.timestamp, histories.facets),
            history_offsets=np.concatenate(([0], np.cumsum(lengths))),
            num_events_before=np.asarray(histories.num_events_before, dtype=np.int64),
            request=self.tokenizer.request_ids(histories.request_timestamp, histories.request_facets),
            profile=self.profile_features(histories.profile_features, len(lengths)),
        )

    def profile_features(self, raw: Mapping[str, NDArray], num_profiles: int) -> ProfileFeatures:
        """Look up declared profile features, `[num_profiles]` or `[num_profiles, max_values]` each."""
        sparse = [np.empty((num_profiles, 0), dtype=np.int64)]
        for feature in self._features:
            if feature.name not in raw:
                raise ValueError(f"profile feature {feature.name!r} is missing; given: {sorted(raw)}")
            ids = self.tokenizer.vocabularies.profile_features[feature.name].lookup(raw[feature.name])
            sparse.append(ids.reshape(num_profiles, feature.max_values))
        dense = [np.empty((num_profiles, 0), dtype=np.float32)]
        for number in self.config.scales:
            dense.append(scale(raw[number.name], number.mean, number.deviation)[:, None])
        return ProfileFeatures(np.concatenate(sparse, axis=1), np.concatenate(dense, axis=1))

    def assemble(self, requests: TokenizedHistories) -> ProfileInputs:
        """Model inputs of looked-up requests: what co-training calls.

        Raises:
            ValueError: if a history is longer than the window.
        """
        lengths = np.diff(requests.history_offsets)
        if lengths.max(initial=0) > self.config.window.window:
            worst = int(lengths.argmax())
            raise ValueError(
                f"history_lengths[{worst}] is {lengths[worst]}; at most window = {self.config.window.window}"
                " events of a history are read, send the newest"
            )
        tokens = history_tokens(self.tokenizer, requests.history, requests.history_offsets, requests.request)
        context = requests.request.request_side
        sparse = [np.where(context > 0, context, -1), requests.profile.sparse]
        if self.recent is not None:
            sparse.append(self.recent.columns(requests.history.item, requests.history_offsets))
        dense = np.concatenate((_request_dense(requests), requests.profile.dense), axis=1)
        return ProfileInputs(
            torch.from_numpy(tokens.facet_ids),
            torch.from_numpy(tokens.item_ids),
            *layout(torch.from_numpy(tokens.lengths)),
            sparse=torch.from_numpy(np.concatenate(sparse, axis=1)),
            dense=torch.from_numpy(dense),
        )

    def candidate_rows(self, item_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """Item rows of raw candidate ids `[C]`; `OUT_OF_VOCABULARY` where unknown."""
        return np.maximum(self.tokenizer.vocabularies.items.lookup(item_id), OUT_OF_VOCABULARY)

    def candidate_inputs(
        self,
        item_id: NDArray[np.int64],
        candidate_lengths: NDArray[np.int64],
        raw: Mapping[str, NDArray] | None = None,
    ) -> CandidateInputs:
        """Model inputs of raw candidates, request by request: what the server calls.

        Args:
            item_id: `[C]`.
            candidate_lengths: `[B]`.
            raw: candidate features by name, `[C]` each; what is for training only is left out.

        Raises:
            ValueError: if the lengths don't add up to C, or a feature is missing.
        """
        lengths = np.asarray(candidate_lengths, dtype=np.int64)
        if lengths.min(initial=0) < 0 or lengths.sum() != len(item_id):
            raise ValueError(
                f"candidate_lengths add up to {lengths.sum()} (smallest: {lengths.min(initial=0)});"
                f" item_id has {len(item_id)} candidates"
            )
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        columns = self.config.candidates.look_up(raw or {}, len(item_id))
        return candidate_tensors(self.candidate_rows(item_id), offsets, columns)


def candidate_tensors(
    item_rows: NDArray[np.int64], offsets: NDArray[np.int64], columns: CandidateColumns
) -> CandidateInputs:
    """Looked-up candidates `[C]` as model inputs: what co-training calls."""
    return CandidateInputs(*(torch.from_numpy(each) for each in (item_rows, offsets, *columns)))


def _request_dense(requests: TokenizedHistories) -> NDArray[np.float32]:
    """`[B, NUM_REQUEST_DENSE]`: log of the profile's events so far, log of the hours since the newest."""
    lengths = np.diff(requests.history_offsets)
    log_events = np.log1p(np.maximum(requests.num_events_before + lengths, 0)) / LOG_EVENTS_SCALE
    newest = np.append(requests.history.timestamp, 0)[np.maximum(requests.history_offsets[1:] - 1, 0)]
    # An event ahead of the request's clock counts as just now.
    hours = np.maximum(requests.request.timestamp - newest, 0) / SECONDS_PER_HOUR
    log_hours = np.where(lengths > 0, np.log1p(hours) / LOG_HOURS_SCALE, 0.0)
    return np.stack((log_events, log_hours), axis=1).astype(np.float32)
