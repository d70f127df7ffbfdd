"""Where one profile meets many candidates: dot products, a decomposed first layer, an MLP, a head per task.

Shapes: B requests, C candidates over the batch, K dot products, E dot-product width, H first hidden width,
N tasks, D_profile profile vector width, D_candidate candidate vector width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InteractionConfig:
    """Widths of the interaction: dot products between the two sides and the MLP on top."""

    num_dots: int = 8
    dot_width: int = 64
    hidden_widths: tuple[int, ...] = (256, 128)

    def __post_init__(self) -> None:
        for name in ("num_dots", "dot_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"InteractionConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.hidden_widths or min(self.hidden_widths) < 1:
            raise ValueError(
                f"InteractionConfig.hidden_widths is {self.hidden_widths}; it needs positive widths"
            )


def request_of_candidate(offsets: Tensor, num_candidates: int) -> Tensor:
    """The request each candidate belongs to, `[C]` int64, from `offsets` `[B + 1]` (requests may be empty).

    A search instead of `repeat_interleave`: its output size depends on no tensor's values, so it exports.
    """
    candidates = torch.arange(num_candidates, dtype=offsets.dtype, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), candidates, right=True)


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
    dots_CK = torch.einsum("ce,cke->ck", e, q.index_select(0, request))
    return torch.relu(x + p.index_select(0, request) + dots_CK @ w)


class FirstLayer(nn.Module):
    """`interaction_first_layer` as a submodule without parameters, so that serving swaps it by attribute."""

    def forward(self, x: Tensor, e: Tensor, p: Tensor, q: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        """See `interaction_first_layer`."""
        return interaction_first_layer(x, e, p, q, w, offsets)


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

    `hidden = relu(W_c c + b + (W_p v)[r] + (W_e c · W_qk v[r])_k W_k + W_f f + W_x x)`, then an MLP, then one
    linear head per task; f are the candidate's features in this request, x is the crossed candidate, left out where
    it isn't given: both scoring modes share all other weights. There is no normalisation over the batch: a
    candidate's logits depend on its request and itself.
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
        bound = (config.num_dots + widths.profile + widths.candidate) ** -0.5
        self.dot_weights = nn.Parameter(torch.empty(config.num_dots, first_width).uniform_(-bound, bound))
        self.first_layer: nn.Module = FirstLayer()  # serving swaps it
        self.mlp = _mlp(config.hidden_widths)
        self.heads = nn.Linear(config.hidden_widths[-1], num_tasks)

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
        hidden_CH = self.first_layer(x_CH, e_CE, p_BH, q_BKE, self.dot_weights, offsets)
        return self.heads(self.mlp(hidden_CH))


def _projection(width: int, first_width: int) -> nn.Linear | None:
    return nn.Linear(width, first_width, bias=False) if width else None


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear and ReLU from each width to the next; empty for one width."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers)
