"""The interaction by the fused operator: what `serving.fuse` puts in its place.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width, N tasks.
"""

from __future__ import annotations

from torch import Tensor, nn

from ranker.arches.interaction import Interaction
from serving.kernels.candidates.ops import ItemTables, Weights, score_candidates
from serving.no_fused_form import NoFusedForm
from serving.packed_linear import PackedLinear
from serving.quantise import QuantisedLinear, QuantisedRows, packed_weights
from serving.split import ItemRows


class FusedCandidates(nn.Module):
    """`Interaction` over item rows, everything per candidate by `marquee::score_candidates`.

    Args:
        interaction: as `serving.split` leaves it, with `ItemRows` for what reads the item alone, or as
            `serving.quantise` does.

    Raises:
        NoFusedForm: if it has a cross network or layers of the tasks' own.
    """

    dots: Tensor
    x_table: Tensor
    e_table: Tensor

    def __init__(self, interaction: Interaction) -> None:
        super().__init__()
        if interaction.cross is not None or interaction.dot_weights is None:
            raise NoFusedForm("candidate scoring with a cross network has no fused form")
        if not isinstance(interaction.heads, nn.Linear):
            raise NoFusedForm("candidate scoring with layers of each task's own has no fused form")
        x_rows, e_rows = interaction.candidate_projection, interaction.candidate_dots
        self._table_scales: list[str] = []
        for name, rows in (("x_table", x_rows), ("e_table", e_rows)):
            if isinstance(rows, QuantisedRows):
                self.register_buffer(name, rows.values)
                self._table_scales.append(f"{name}_scales")
                self.register_buffer(self._table_scales[-1], rows.scales)
            else:
                assert isinstance(rows, ItemRows)
                self.register_buffer(name, rows.table.contiguous())
        self.register_buffer("dots", interaction.dot_weights.detach().clone())
        self.num_dots, self.num_tasks = interaction.num_dots, interaction.heads.out_features
        self.profile = PackedLinear(interaction.profile_projection, interaction.profile_dots)
        self.has_features = interaction.feature_projection is not None
        self.has_crossed = interaction.crossing_projection is not None
        self._layers: list[str] = []
        self._scales: list[str] = []
        for layer in (interaction.feature_projection, interaction.crossing_projection):
            if layer is not None:
                self._add_weights(layer)
        for layer in (*interaction.mlp, interaction.heads):
            if isinstance(layer, nn.Linear | QuantisedLinear):
                assert layer.bias is not None
                self._add_weights(layer)
                self._add(layer.bias.detach().clone())

    def _add_weights(self, layer: nn.Module) -> None:
        packed, scales = packed_weights(layer)
        self._add(packed)
        for tensor in scales:
            self._scales.append(f"scales_{len(self._scales)}")
            self.register_buffer(self._scales[-1], tensor)

    def _add(self, tensor: Tensor) -> None:
        self._layers.append(f"layer_{len(self._layers)}")
        self.register_buffer(self._layers[-1], tensor)

    def forward(
        self,
        vector: Tensor,
        item_rows: Tensor,
        offsets: Tensor,
        features: Tensor | None = None,
        crossed: Tensor | None = None,
    ) -> Tensor:
        """Score candidates as `Interaction.forward` does, `item_rows` `[C]` being their rows in its tables.

        Returns:
            logits `[C, N]`.
        """
        assert self.has_features == (features is not None) and self.has_crossed == (crossed is not None)
        return score_candidates(
            item_rows,
            offsets,
            ItemTables(self.x_table, self.e_table, self._named(self._table_scales)),
            (self.profile(vector), None),
            (features, crossed),
            Weights(self.dots, self._named(self._layers), self._named(self._scales), self.num_tasks),
        )

    def _named(self, names: list[str]) -> list[Tensor]:
        return [self.get_buffer(name) for name in names]
