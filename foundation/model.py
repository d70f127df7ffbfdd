"""The foundation model: histories in, hidden states out; item vectors on both sides.

Shapes: T packed tokens, F facet columns, B sequences, S longest sequence, I item rows, M metadata columns,
D model width.

    facet_ids [T, F] ──facet embedding, summed──┐
    item_ids [T] ──rows of the item vectors─────┴─▶ + ──▶ decoder ──▶ hidden [T, D] ──cosine──▶ logits [T, I]
                              ▲                                                        ▲
          item tower ──▶ item vectors [I, D] ──────────────────────────────────────────┘
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from foundation.decoder import Decoder, DecoderConfig
from foundation.item_tower import INITIAL_STD, ItemTower
from foundation.layout import Layout
from foundation.vocabulary import FIRST_KNOWN
from foundation.window import WindowConfig

# Under it a vector counts as no opinion rather than being blown up to length one: keeps gradients finite at zero.
SMALLEST_NORM = 1e-4


@dataclass(frozen=True)
class FoundationConfig:
    """What a foundation model is made of, apart from its vocabulary.

    Args:
        decoder: size of the decoder.
        window: how much of a history it sees.
        temperature: divisor of the cosine between hidden state and item vector (HSTU, arXiv 2402.17152: 0.05).
    """

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `config.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FoundationConfig:
        """The inverse of `to_json`."""
        return cls(
            decoder=DecoderConfig(**values["decoder"]),
            window=WindowConfig(**values["window"]),
            temperature=values["temperature"],
        )


def unit(x: Tensor) -> Tensor:
    """`x` scaled to length one along its last dimension; a (nearly) zero vector stays (nearly) zero."""
    return nn.functional.normalize(x, dim=-1, eps=SMALLEST_NORM)


class FoundationModel(nn.Module):
    """A causal decoder over event tokens, with an item tower tied at its input and output.

    Args:
        config: sizes and temperature.
        num_facet_rows: rows of the joint facet table (`Tokenizer.num_facet_rows`), row 0 (padding) included.
        num_feature_rows: rows of the joint item metadata table, row 0 (padding) included.
        feature_rows: `[I, M]`, metadata rows of every item, rows 0 and 1 included.
    """

    def __init__(
        self, config: FoundationConfig, num_facet_rows: int, num_feature_rows: int, feature_rows: Tensor
    ) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.width
        self.facet_embedding = nn.EmbeddingBag(num_facet_rows, width, mode="sum", padding_idx=0)
        nn.init.normal_(self.facet_embedding.weight, std=INITIAL_STD)
        nn.init.zeros_(self.facet_embedding.weight[0])
        self.item_tower = ItemTower(feature_rows, num_feature_rows, width)
        self.decoder = Decoder(config.decoder)

    def item_vectors(self) -> Tensor:
        """Vectors of all items, `[I, D]`, not normalised. Compute once per training step, or fold at export."""
        return self.item_tower()

    def forward(self, facet_ids: Tensor, item_ids: Tensor, layout: Layout, item_vectors: Tensor) -> Tensor:
        """Hidden state of every token.

        Args:
            facet_ids: `[T, F]` int64, rows of the joint facet table; 0 where there is no value.
            item_ids: `[T]` int64, item row of the previous event, or `START`.
            layout: gather indices of the batch.
            item_vectors: `[I, D]`, from `item_vectors()`.

        Returns:
            `[T, D]`, after the final norm. A hidden state has seen its own token and those before it.
        """
        x_TD = self.facet_embedding(facet_ids) + item_vectors.index_select(0, item_ids)
        return self.decoder(x_TD, layout)

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
