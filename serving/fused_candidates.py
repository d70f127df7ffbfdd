"""The interaction by the fused operator: what `serving.fuse` puts in its place.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width, N tasks.
"""

from __future__ import annotations

from torch import Tensor, nn

from ranker.arches.interaction import Interaction
from serving.kernels.candidates.ops import ItemTables, Weights, score_candidates
from serving.kernels.candidates.rows import quantise_table
from serving.kernels.linear.panels import pack
from serving.no_fused_form import NoFusedForm
from serving.split import ItemRows


class FusedCandidates(nn.Module):
    """`Interaction` over item rows, everything per candidate by `marquee::score_candidates`.

    Args:
        interaction: as `serving.split` leaves it, with `ItemRows` for what reads the item alone.
        int8_rows: item rows in int8, see `serving.kernels.candidates.rows`.

    Raises:
        NoFusedForm: if it has a cross network or layers of the tasks' own.
    """

    profile_projection: nn.Module
    profile_dots: nn.Module
    dots: Tensor
    x_table: Tensor
    e_table: Tensor

    def __init__(self, interaction: Interaction, int8_rows: bool = False) -> None:
        super().__init__()
        if interaction.cross is not None or interaction.dot_weights is None:
            raise NoFusedForm("candidate scoring with a cross network has no fused form")
        if not isinstance(interaction.heads, nn.Linear):
            raise NoFusedForm("candidate scoring with layers of each task's own has no fused form")
        x_rows, e_rows = interaction.candidate_projection, interaction.candidate_dots
        assert isinstance(x_rows, ItemRows) and isinstance(e_rows, ItemRows)
        self._table_scales: list[str] = []
        for name, rows in (("x_table", x_rows), ("e_table", e_rows)):
            table = rows.table.contiguous()
            if int8_rows:
                table, scales = quantise_table(table)
                self._table_scales.append(f"{name}_scales")
                self.register_buffer(self._table_scales[-1], scales)
            self.register_buffer(name, table)
        self.register_buffer("dots", interaction.dot_weights.detach().clone())
        self.num_dots, self.num_tasks = interaction.num_dots, interaction.heads.out_features
        self.profile_projection = interaction.profile_projection
        self.profile_dots = interaction.profile_dots
        self.has_features = interaction.feature_projection is not None
        self.has_crossed = interaction.crossing_projection is not None
        self._layers: list[str] = []
        for layer in (interaction.feature_projection, interaction.crossing_projection):
            if layer is not None:
                self._add_weights(layer)
        for layer in (*interaction.mlp, interaction.heads):
            if isinstance(layer, nn.Linear):
                self._add_weights(layer)
                self._add(layer.bias.detach().clone())

    def _add_weights(self, layer: nn.Linear) -> None:
        self._add(pack(layer.weight.detach()))

    def _add(self, tensor: Tensor) -> None:
        name = f"layer_{len(self._layers)}"
        self.register_buffer(name, tensor)
        self._layers.append(name)

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
        profile_BKE = self.profile_dots(vector).view(-1, self.num_dots, self.e_table.shape[1])
        return score_candidates(
            item_rows,
            offsets,
            ItemTables(self.x_table, self.e_table, [self.get_buffer(name) for name in self._table_scales]),
            (self.profile_projection(vector), profile_BKE),
            (features, crossed),
            Weights(self.dots, [self.get_buffer(name) for name in self._layers], num_tasks=self.num_tasks),
        )
