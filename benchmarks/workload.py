"""The seeded workloads that the fast path is measured on: one ranker, and requests as tensors.

    reference   256 tokens (the request's own among them), 500 candidates, vector mode
    long        1,024 tokens, 1,000 candidates, vector mode
    crossing    as `reference`, candidates crossing the decoder's top layer

Decoder width 256, 4 layers, 4 heads; a catalogue of 10,000 items. Equal configurations give equal tensors, whatever the
process: nothing is read from a file.

Shapes: B requests, C candidates over the batch, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.workload_ranker import (
    CANDIDATE_FIELDS,
    FACET_COLUMNS,
    FACET_ROWS,
    PROFILE_FIELDS,
    build_ranker,
)
from foundation.layout import layout
from foundation.vocabulary import FIRST_KNOWN
from ranker.features.columns import SparseField, total_columns
from ranker.features.inputs import CandidateInputs, ProfileInputs
from ranker.model import Ranker, RankerInputs
from serving.split import Halves, split

CANDIDATE_SWEEP = (50, 100, 200, 500, 1_000, 2_000)
HISTORY_SWEEP = (64, 128, 256, 512, 1_024)
"""Tokens, the request's own among them."""
LONGEST_HISTORY = max(HISTORY_SWEEP) - 1
"""Events: the window of every workload's ranker, so that one ranker, exported once, is asked for all sizes."""
BATCH = 4


@dataclass(frozen=True)
class WorkloadConfig:
    """Which ranker, and which requests of it.

    Attributes:
        tokens: of each request, its own among them.
        candidates: of each request.
        crossing_layers: m, decoder layers that candidates cross; 0: vector mode.
        width: D; anything but 256 is for tests.
        num_items: of the catalogue.
        num_requests: different requests, so that none is answered from warm caches alone.
        seed: of weights and requests.
    """

    tokens: int = 256
    candidates: int = 500
    crossing_layers: int = 0
    width: int = 256
    num_items: int = 10_000
    num_requests: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("candidates", 1), ("num_items", 1), ("num_requests", BATCH)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"WorkloadConfig.{name} is {getattr(self, name)}; it must be at least {least}"
                )
        if self.tokens > LONGEST_HISTORY + 1:
            raise ValueError(
                f"WorkloadConfig.tokens is {self.tokens}; it must be at most {LONGEST_HISTORY + 1}"
            )


WORKLOADS = {
    "reference": WorkloadConfig(),
    "long": WorkloadConfig(tokens=1_024, candidates=1_000),
    "crossing": WorkloadConfig(crossing_layers=1),
    "small": WorkloadConfig(tokens=16, candidates=12, width=128, num_items=50),
    "small_crossing": WorkloadConfig(tokens=16, candidates=12, crossing_layers=1, width=128, num_items=50),
}
"""The small ones are for tests; narrower than 128, OpenVINO 2026.4.1 crashes as it compiles their static shapes."""


class Request(NamedTuple):
    """Tensors of one request, or of several joined."""

    profile: ProfileInputs
    candidates: CandidateInputs


class Workload:
    """The ranker of a configuration, and its requests.

    Args:
        config: equal ones give equal tensors.
    """

    def __init__(self, config: WorkloadConfig) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.ranker: Ranker = build_ranker(
                config.width, config.crossing_layers, config.num_items, LONGEST_HISTORY
            )
        self.requests = tuple(
            self._request(number, config.tokens, config.candidates) for number in range(config.num_requests)
        )

    @cached_property
    def halves(self) -> Halves:
        """The ranker cut at its profile state; the modules that every variant but the unsplit one starts from."""
        return split(self.ranker)

    def reference(self, request: Request) -> Tensor:
        """Logits `[C, N]` of the training graph as one piece, which every variant is held to."""
        with torch.no_grad():
            return self.ranker(RankerInputs(*request))

    def four(self, ragged: bool) -> tuple[Request, ...]:
        """Four requests: the workload's first, or such with 4/4, 3/4, 2/4 and 1/4 of its tokens and candidates."""
        if not ragged:
            return self.requests[:BATCH]
        config, quarters = self.config, range(BATCH, 0, -1)
        sizes = [
            (max(2, config.tokens * part // BATCH), max(1, config.candidates * part // BATCH))
            for part in quarters
        ]
        return tuple(self._request(1_000 + number, *size) for number, size in enumerate(sizes))

    def _request(self, number: int, tokens: int, candidates: int) -> Request:
        draw = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)

        def rows(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=draw)

        items = (FIRST_KNOWN, FIRST_KNOWN + self.config.num_items)
        profile = ProfileInputs(
            rows(0, FACET_ROWS, tokens, FACET_COLUMNS),
            rows(*items, tokens),
            *layout(torch.tensor([tokens])),
            _ids(PROFILE_FIELDS.sparse, 1, draw),
            torch.randn(1, PROFILE_FIELDS.num_dense, generator=draw),
        )
        return Request(
            profile,
            CandidateInputs(
                rows(*items, candidates),
                torch.tensor([0, candidates]),
                _ids(CANDIDATE_FIELDS.sparse, candidates, draw),
                torch.randn(candidates, CANDIDATE_FIELDS.num_dense, generator=draw),
            ),
        )


def _ids(fields: Sequence[SparseField], num_rows: int, draw: torch.Generator) -> Tensor:
    """Id columns `[num_rows, W]`, some of them -1: no value."""
    columns = [
        torch.randint(-1, field.num_rows, (num_rows, total_columns([field])), generator=draw)
        for field in fields
    ]
    return torch.cat(columns, dim=1)


def join(requests: Sequence[Request]) -> Request:
    """Several requests as one batch."""
    profiles, candidates = zip(*requests, strict=True)
    tokens = torch.tensor([len(each.item_ids) for each in profiles])
    sizes = torch.tensor([0, *(len(each.item_rows) for each in candidates)])
    packed = layout(tokens)
    return Request(
        ProfileInputs(
            torch.cat([each.facet_ids for each in profiles]),
            torch.cat([each.item_ids for each in profiles]),
            *packed,
            torch.cat([each.sparse for each in profiles]),
            torch.cat([each.dense for each in profiles]),
        ),
        CandidateInputs(
            torch.cat([each.item_rows for each in candidates]),
            sizes.cumsum(0),
            torch.cat([each.sparse for each in candidates]),
            torch.cat([each.dense for each in candidates]),
        ),
    )
