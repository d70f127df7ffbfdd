"""The foundation model: histories in, hidden states out; item vectors on both sides.

Shapes: T packed tokens, F facet columns, B sequences, S longest sequence, I item rows, M metadata columns,
D model width.

    facet_ids [T, F] ──facet embedding, summed──┐
    item_ids [T] ──rows, aged as of the event───┴─▶ + ──▶ decoder ──▶ hidden [T, D] ──cosine──▶ logits [T, I]
                              ▲                                                        ▲
          item tower ──▶ item vectors [I, D], as of the release ───────────────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import tyro
from torch import Tensor, nn

from foundation.aggregation import Aggregation, AggregationConfig
from foundation.decoder import Decoder, DecoderConfig, DecoderPass
from foundation.errors import DataError
from foundation.foreign.config import ForeignConfig, build_foreign
from foundation.foreign.packed import PackedForeign
from foundation.intent import Intent
from foundation.item_tower import INITIAL_STD, ItemFacts, ItemTower, ItemVectors
from foundation.layout import Layout
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import WindowConfig

# Under it a vector counts as no opinion rather than being blown up to length one: keeps gradients finite at zero.
SMALLEST_NORM = 1e-4


@dataclass(frozen=True)
class FoundationConfig:
    """What a foundation model is made of, apart from its vocabulary.

    Args:
        decoder: size and blocks of the decoder.
        window: how much of a history it sees.
        aggregation: which layers and tokens a representation is made of.
        intent_classes: where an intent is predicted first (`foundation.intent`), how many there are; 0: none is.
            Pre-training sets it from its objective.
        foreign: a decoder of another library in the place of ours, with `decoder.width` and `decoder.num_layers`; what
            else `decoder` says is not read then.
        temperature: divisor of the cosine between hidden state and item vector (HSTU, arXiv 2402.17152: 0.05).
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    intent_classes: Annotated[int, tyro.conf.Suppress] = 0
    temperature: float = 0.05
    foreign: ForeignConfig = field(default_factory=ForeignConfig)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.intent_classes < 0:
            raise ValueError(f"intent_classes must be >= 0, got {self.intent_classes}")
        # The constant that "hstu" blocks divide by: all tokens of a full window, the request's own among them.
        decoder = replace(self.decoder, hstu_window=self.window.window + 1)
        object.__setattr__(self, "decoder", decoder)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `config.json`."""
        return asdict(self) | {"foreign": self.foreign.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FoundationConfig:
        """The inverse of `to_json`."""
        return cls(
            decoder=DecoderConfig.from_json(values["decoder"]),
            aggregation=AggregationConfig(**values["aggregation"]),
            window=WindowConfig(**values["window"]),
            intent_classes=values["intent_classes"],
            temperature=values["temperature"],
            foreign=ForeignConfig.from_json(values.get("foreign", ForeignConfig().to_json())),
        )


def unit(x: Tensor) -> Tensor:
    """`x` scaled to length one along its last dimension; a (nearly) zero vector stays (nearly) zero."""
    return nn.functional.normalize(x, dim=-1, eps=SMALLEST_NORM)


def _decoder(config: FoundationConfig) -> Decoder | PackedForeign:
    if not config.foreign.adapter:
        return Decoder(config.decoder)
    decoder = build_foreign(config.foreign, config.decoder.width, config.decoder.num_layers)
    needed = config.window.window + 2  # the request's own token, and a candidate's behind it
    if decoder.max_positions is not None and decoder.max_positions < needed:
        raise DataError(
            f"foreign.settings gives the decoder {decoder.max_positions} positions; window.window = "
            f"{config.window.window} needs {needed}"
        )
    return PackedForeign(decoder)


class FoundationModel(nn.Module):
    """A causal decoder over event tokens, with an item tower tied at its input and output.

    Args:
        config: sizes and temperature.
        num_facet_rows: rows of the joint facet table (`Tokenizer.num_facet_rows`), row 0 (padding) included.
        num_feature_rows: rows of the joint item metadata table, row 0 (padding) included.
        facts: what is known of every item (`foundation.item_features.item_facts`).
        age_column: the column of `facet_ids` that holds the item's age as of its event; None: there is none.
    """

    def __init__(
        self,
        config: FoundationConfig,
        num_facet_rows: int,
        num_feature_rows: int,
        facts: ItemFacts,
        age_column: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.age_column = age_column
        width = config.decoder.width
        self.facet_embedding = nn.EmbeddingBag(num_facet_rows, width, mode="sum", padding_idx=0)
        nn.init.normal_(self.facet_embedding.weight, std=INITIAL_STD)
        nn.init.zeros_(self.facet_embedding.weight[0])
        self.item_tower = ItemTower(facts, num_feature_rows, num_facet_rows, width)
        self.decoder = _decoder(config)
        self.aggregation = Aggregation(config.aggregation, width, config.decoder.num_layers)
        self.intent = Intent(width, config.intent_classes) if config.intent_classes else None

    def item_vectors(self) -> ItemVectors:
        """Vectors of all items. Compute once per training step, or fold at export."""
        return self.item_tower()

    def tokens(self, facet_ids: Tensor, item_ids: Tensor, items: ItemVectors) -> Tensor:
        """What the decoder reads, `[T, D]`; arguments as in `forward`."""
        if self.age_column is None:
            of_items_TD = items.vectors.index_select(0, item_ids)
        else:
            of_items_TD = items.at_event(item_ids, facet_ids[:, self.age_column])
        return self.facet_embedding(facet_ids) + of_items_TD

    def forward(
        self,
        facet_ids: Tensor,
        item_ids: Tensor,
        layout: Layout,
        items: ItemVectors,
        times: Tensor | None = None,
    ) -> Tensor:
        """Hidden state of every token.

        Args:
            facet_ids: `[T, F]` int64, rows of the joint facet table; 0 where there is no value.
            item_ids: `[T]` int64, item row of the previous event, or `START`.
            layout: gather indices of the batch.
            items: from `item_vectors()`.
            times: `[T]` int64 unix seconds, each token's own *when*; "hstu" blocks alone read them.

        Returns:
            `[T, D]`, as items are compared with it. A hidden state has seen its own token and those before it.
        """
        return self.read(self.tokens(facet_ids, item_ids, items), layout, times).layers[-1]

    def read(
        self,
        x_TD: Tensor,
        layout: Layout,
        times: Tensor | None = None,
        every_layer: bool = False,
        num_kept: int = 0,
    ) -> DecoderPass:
        """One pass over tokens: hidden states, the last as `forward` gives them, and keys and values.

        Args:
            x_TD: from `tokens`.
            layout, times: as in `forward`.
            every_layer: as in `representations`.
            num_kept: keep keys and values of so many of the decoder's layers, from the top down.
        """
        passed = self._pass(x_TD, layout, times, every_layer, num_kept)
        if self.intent is None:
            return passed
        return passed._replace(layers=(*passed.layers[:-1], self.intent(passed.layers[-1])[0]))

    def representations(
        self, x_TD: Tensor, layout: Layout, times: Tensor | None = None, every_layer: bool = False
    ) -> tuple[Tensor, ...]:
        """Each token's representation, `[T, D]`, before any intent: the last of what is returned.

        Args:
            x_TD: from `tokens`.
            layout, times: as in `forward`.
            every_layer: return also, before it, those of all layers but the last: what a decoder cut off there has,
                its newest tokens pooled alike. Where layers are mixed they are the layers' own states, normed.
        """
        return self._pass(x_TD, layout, times, every_layer, 0).layers

    def _pass(
        self, x_TD: Tensor, layout: Layout, times: Tensor | None, every_layer: bool, num_kept: int
    ) -> DecoderPass:
        are_mixed = self.config.aggregation.layers == "mix"
        passed = self.decoder.read(x_TD, layout, times, every_layer or are_mixed, num_kept)
        if are_mixed:
            return passed._replace(layers=(*passed.layers[:-1], self.aggregation(passed.layers, layout)))
        return passed._replace(layers=tuple(self.aggregation((each,), layout) for each in passed.layers))

    def hidden_states(self, layers: Sequence[Tensor], layout: Layout) -> Tensor:
        """What `forward` gives, of the decoder's own layers; the last alone will do unless layers are mixed."""
        hidden_TD = self.aggregation(layers, layout)
        return hidden_TD if self.intent is None else self.intent(hidden_TD)[0]

    def profile_vector(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """Hidden state of each sequence's last token, `[B, D]`."""
        return hidden_TD.index_select(0, layout.last_index)

    def logits(self, hidden: Tensor, item_vectors: Tensor) -> Tensor:
        """cos(hidden, item) / temperature.

        Args:
            hidden: `[..., D]`.
            item_vectors: `[I, D]`.

        Returns:
            `[..., I]`; -inf for the out-of-vocabulary and start rows, which nothing can be followed by.
        """
        logits = unit(hidden) @ unit(item_vectors).T / self.config.temperature
        logits[..., :FIRST_KNOWN] = float("-inf")
        return logits
