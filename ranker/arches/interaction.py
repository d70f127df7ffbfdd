"""Where one profile meets many candidates: dot products, a decomposed first layer, an MLP, a head per task.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width,
W width of the cross network, N tasks, D_profile profile vector width, D_candidate candidate vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ranker.arches.cross_network import CrossNetwork, CrossSizes
from ranker.arches.heads import task_heads
from ranker.arches.mlp import mlp


@dataclass(frozen=True)
class InteractionConfig:
    """What meets between the two sides, and how.

    Attributes:
        num_dots: K, dot products between the two sides.
        dot_width: E; at least the decoder's width.
        hidden_widths: of the MLP on top, the first being H.
        cross_layers: of a cross network (DCN-v2) over the candidate's features and the dot products; 0: there is none.
        cross_width: of what depends on the item alone, projected for the cross network.
        cross_rank: of the cross network's layers.
        head_widths: of layers that each task has for itself; none: its head is linear.
    """

    num_dots: int = 8
    dot_width: int = 64
    hidden_widths: tuple[int, ...] = (256, 128)
    cross_layers: int = 0
    cross_width: int = 32
    cross_rank: int = 16
    head_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (
            ("num_dots", 1),
            ("dot_width", 1),
            ("cross_layers", 0),
            ("cross_width", 1),
            ("cross_rank", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"InteractionConfig.{name} is {getattr(self, name)}; it must be at least {least}"
                )
        if not self.hidden_widths or min(self.hidden_widths) < 1:
            raise ValueError(
                f"InteractionConfig.hidden_widths is {self.hidden_widths}; it needs positive widths"
            )
        if min(self.head_widths, default=1) < 1:
            raise ValueError(f"InteractionConfig.head_widths is {self.head_widths}; widths must be positive")


def request_of_candidate(offsets: Tensor, num_candidates: int) -> Tensor:
    """The request each candidate belongs to, `[C]` int64, from `offsets` `[B + 1]` (requests may be empty).

    A search instead of `repeat_interleave`: its output size depends on no tensor's values, so it exports.
    """
    candidates = torch.arange(num_candidates, dtype=offsets.dtype, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), candidates, right=True)


def dot_products(e: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
    """`e_c · q_rk` for each candidate `c` of request `r`, `[C, K]`; arguments as of `interaction_first_layer`."""
    request = request_of_candidate(offsets, e.shape[0])
    return torch.einsum("ce,cke->ck", e, q.index_select(0, request))


def interaction_first_layer(x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """`relu(x_c + p_r + Σ_k (e_c · q_rk) w_k)` for each candidate `c` of request `r`: the specification.

    It is the first linear layer over [profile ⊕ candidate ⊕ dot products] in decomposed form: the profile's
    share `p` and its dot-product queries `q` are computed once per request (IKBO's algebra, ROO,
    arXiv 2508.05640). This reference gathers both by request; a fused implementation reads them in place.

    Args:
        x: `[C, H]` the candidate's share of the first layer, bias included.
        e: `[C, E]` the candidate's side of the dot products.
        p: `[B, H]` the profile's share of the first layer.
        q: `[B, K, E]` the profile's side of the dot products.
        w: `[K, H]` first-layer weights of the dot products.
        offsets: `[B + 1]` int64 or int32, rising; request `b` owns candidates `offsets[b]` to
            `offsets[b + 1]`, from 0 to C.

    Returns:
        `[C, H]`.
    """
    request = request_of_candidate(offsets, x.shape[0])
    return torch.relu(x + p.index_select(0, request) + dot_products(e, q, offsets) @ w)


class FirstLayer(nn.Module):
    """`interaction_first_layer` as a submodule without parameters, so that serving swaps it by attribute."""

    def forward(self, x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        """See `interaction_first_layer`."""
        return interaction_first_layer(x, e, p, q, w, offsets)


class DotProducts(nn.Module):
    """`dot_products` as a submodule without parameters, so that serving swaps it by attribute."""

    def forward(self, e: Tensor, q: Tensor, offsets: Tensor) -> Tensor:
        """See `dot_products`."""
        return dot_products(e, q, offsets)


class Widths(NamedTuple):
    """What an interaction joins."""

    profile: int
    """D_profile."""
    candidate: int
    """D_candidate: of what depends on the item alone."""
    features: int
    """Of what a candidate is in one request only; 0 without such features."""
    crossed: int
    """Of a candidate that has passed through the decoder; 0 without crossing."""


class Interaction(nn.Module):
    """Logits of every task for every candidate, given its request's profile vector.

    `hidden = relu(W_c c + b + (W_p v)[r] + (W_e c · W_qk v[r])_k W_k + W_f f + W_x x)`, then an MLP, then the
    tasks' heads; f are the candidate's features in this request, x is the crossed candidate, left out where it isn't
    given: both scoring modes share all other weights. There is no normalisation over the batch: a candidate's
    logits depend on its request and itself.

    With a cross network, what it makes of [projected c ; f ; dot products] takes the place of the dot products.
    """

    def __init__(self, config: InteractionConfig, widths: Widths, num_tasks: int) -> None:
        super().__init__()
        first_width = config.hidden_widths[0]
        self.num_dots, self.dot_width = config.num_dots, config.dot_width
        self.candidate_projection = nn.Linear(widths.candidate, first_width)
        self.candidate_dots = nn.Linear(widths.candidate, config.dot_width, bias=False)
        self.profile_projection = nn.Linear(widths.profile, first_width, bias=False)
        self.profile_dots = nn.Linear(widths.profile, config.num_dots * config.dot_width, bias=False)
        self.feature_projection = _projection(widths.features, first_width)
        self.crossing_projection = _projection(widths.crossed, first_width)
        self.cross = _cross_network(config, widths)
        self.dot_products: nn.Module | None = DotProducts() if self.cross else None  # serving swaps it
        self.dot_weights: nn.Parameter | None = None
        if self.cross is None:
            bound = (config.num_dots + widths.profile + widths.candidate) ** -0.5
            self.dot_weights = nn.Parameter(torch.empty(config.num_dots, first_width).uniform_(-bound, bound))
        self.first_layer: nn.Module = FirstLayer()  # serving swaps it
        self.mlp = mlp(config.hidden_widths)
        self.heads = task_heads(config.hidden_widths[-1], config.head_widths, num_tasks)

    @property
    def item_projections(self) -> tuple[str, ...]:
        """Names of the submodules that read `candidate` and nothing else: serving folds them into tables."""
        crossed = () if self.cross is None else ("cross.candidate_projection",)
        return ("candidate_projection", "candidate_dots", *crossed)

    @torch.no_grad()
    def start_from_shared_space(self, width: int, scale: float) -> None:
        """Make dot product 0 equal `scale · (v[:width] · c[:width])` before the first step.

        With the decoder's normalised hidden state and the normalised item vector at the head of the two
        vectors and `scale = 1 / temperature`, that is the foundation model's own logit. Every dot product
        starts on the item vector alone; what else the candidate has is learnt in.

        Raises:
            ValueError: if `width` is wider than the dot products.
        """
        if width > self.dot_width:
            raise ValueError(
                f"InteractionConfig.dot_width is {self.dot_width}; the decoder's width needs at least {width}"
            )
        identity = torch.eye(width)
        self.candidate_dots.weight.zero_()
        self.candidate_dots.weight[:width, :width] = identity
        self.profile_dots.weight[: self.dot_width].zero_()
        self.profile_dots.weight[:width, :width] = identity * scale

    def forward(
        self,
        vector: Tensor,
        candidate: Tensor,
        offsets: Tensor,
        features: Tensor | None = None,
        crossed: Tensor | None = None,
    ) -> Tensor:
        """Score candidates.

        Args:
            vector: `[B, D_profile]`.
            candidate: `[C, D_candidate]`, request by request.
            offsets: `[B + 1]` of the requests' candidates.
            features: `[C, F]` of the candidates in their requests; None where the ranker has none.
            crossed: `[C, D]` from the decoder; None to score without.

        Returns:
            logits `[C, N]`.
        """
        x_CH = self.candidate_projection(candidate)
        if self.feature_projection is not None:
            assert features is not None
            x_CH = x_CH + self.feature_projection(features)
        if crossed is not None:
            assert self.crossing_projection is not None
            x_CH = x_CH + self.crossing_projection(crossed)
        e_CE = self.candidate_dots(candidate)
        p_BH = self.profile_projection(vector)
        q_BKE = self.profile_dots(vector).view(-1, self.num_dots, self.dot_width)
        w_KH = self.dot_weights
        if self.cross is not None and self.dot_products is not None:
            x_CH = x_CH + self.cross(candidate, features, self.dot_products(e_CE, q_BKE, offsets))
            q_BKE, w_KH = q_BKE[:, :0], p_BH.new_empty(0, p_BH.shape[1])
        hidden_CH = self.first_layer(x_CH, e_CE, p_BH, q_BKE, w_KH, offsets)
        return self.heads(self.mlp(hidden_CH))


def _projection(width: int, first_width: int) -> nn.Linear | None:
    return nn.Linear(width, first_width, bias=False) if width else None


def _cross_network(config: InteractionConfig, widths: Widths) -> CrossNetwork | None:
    if not config.cross_layers:
        return None
    sizes = CrossSizes(config.cross_layers, config.cross_width, config.cross_rank)
    return CrossNetwork(sizes, widths.candidate, widths.features + config.num_dots, config.hidden_widths[0])
