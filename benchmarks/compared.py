"""What `benchmarks.latency` compares: the variants, what each computes, and which two make a ratio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.baselines.protocol import Case
from serving.parity import TOLERANCE
from serving.probe import SERVED_TOLERANCE

REFERENCE = "eager"
"""Whose outputs all others are held to; its own parity is measured against the unsplit graph, which training runs."""
UNSPLIT = "unsplit"
FUSED, FUSED_INT8 = "fused", "fused_int8"
FLOOR = "floor"
# A float32 sum that rounds otherwise can move a quantised value by one step, which is 1/127 of its row's largest.
LOW_PRECISION_TOLERANCE = 2e-2
BATCH = 4


@dataclass(frozen=True)
class Compared:
    """One variant.

    Attributes:
        tolerance: largest parity difference at which its speed means anything; None: it has no reference of its own
            precision, and its difference from float32 is reported, not judged.
        peer: a library that people would pick instead.
        low_precision: int8 somewhere.
    """

    tolerance: float | None
    peer: bool = False
    low_precision: bool = False


VARIANTS = {
    "eager": Compared(TOLERANCE, peer=True),
    "aotinductor": Compared(SERVED_TOLERANCE, peer=True),
    "onnxruntime": Compared(SERVED_TOLERANCE, peer=True),
    "openvino": Compared(SERVED_TOLERANCE, peer=True),
    UNSPLIT: Compared(TOLERANCE),
    FUSED: Compared(TOLERANCE),
    FUSED_INT8: Compared(LOW_PRECISION_TOLERANCE, low_precision=True),
    "eager_int8": Compared(None, peer=True, low_precision=True),
    "onnxruntime_int8": Compared(None, peer=True, low_precision=True),
    "openvino_int8": Compared(None, peer=True, low_precision=True),
}
BEST_OF = ("eager", "aotinductor", "onnxruntime", "openvino")
"""The best peer is the fastest of these."""
BEST_OF_INT8 = ("eager_int8", "onnxruntime_int8", "openvino_int8")


class Entry(NamedTuple):
    """One variant on one case: what is timed."""

    variant: str
    case: Case

    def __str__(self) -> str:
        return f"{self.variant} {self.case.name}"


class Cases(NamedTuple):
    """The cases of one workload that ratios speak of."""

    whole: Case
    profile: Case
    candidates: Case
    plain: Case
    folded: Case
    candidates_500: Case
    candidates_1000: Case
    batch: Case
    alone: Case


def cases_of(workload: str) -> Cases:
    """Of the workload of that name."""
    candidates, four = Case(workload, "candidates"), Case(workload, requests=BATCH)
    return Cases(
        whole=Case(workload),
        profile=Case(workload, "profile"),
        candidates=candidates,
        plain=replace(candidates, form="plain"),
        folded=replace(candidates, form="folded"),
        candidates_500=replace(candidates, candidates=500),
        candidates_1000=replace(candidates, candidates=1_000),
        batch=four,
        alone=replace(four, together=False),
    )


def rounds(cases: Cases, variants: tuple[str, ...]) -> list[list[Entry]]:
    """What is timed beside each other: within a round, variants take turns in rotating order."""
    cut = [name for name in variants if name != UNSPLIT]
    peers = [name for name in variants if name in BEST_OF]
    fused = [name for name in variants if name == FUSED]
    return [
        [Entry(name, cases.whole) for name in variants],
        [Entry(name, cases.profile) for name in cut],
        [
            *(Entry(name, cases.candidates) for name in cut),
            *(Entry(name, case) for case in (cases.plain, cases.folded) for name in peers),
            *(Entry(name, case) for case in (cases.candidates_500, cases.candidates_1000) for name in fused),
        ],
        [Entry(name, case) for case in (cases.batch, cases.alone) for name in fused],
    ]


def reference_case(case: Case) -> Case:
    """The case whose outputs are those of `case`, as the reference computes it: one request after another."""
    return replace(case, form="decomposed", together=case.requests == 1)


class Quotient(NamedTuple):
    """One time over another; that of the best of some peers on a case where `below` names no variant."""

    name: str
    above: Entry
    below: Entry | Case
    peers: tuple[str, ...] = BEST_OF


def quotients(cases: Cases) -> list[Quotient]:
    """The ratios of one workload; lower is better for us, all of them."""
    fused = Entry(FUSED, cases.candidates)
    return [
        Quotient("fused_vs_best_peer_cold", Entry(FUSED, cases.whole), cases.whole),
        Quotient("fused_int8_vs_best_peer_cold", Entry(FUSED_INT8, cases.whole), cases.whole),
        Quotient(
            "fused_int8_vs_best_int8_peer_cold", Entry(FUSED_INT8, cases.whole), cases.whole, BEST_OF_INT8
        ),
        Quotient("fused_candidates_vs_best_peer", fused, cases.candidates),
        Quotient("fused_candidates_vs_best_peer_plain", fused, cases.plain),
        Quotient("fused_candidates_vs_best_peer_folded", fused, cases.folded),
        Quotient(
            "candidates_500_to_1000", Entry(FUSED, cases.candidates_1000), Entry(FUSED, cases.candidates_500)
        ),
        Quotient("batch_of_4_vs_4_alone", Entry(FUSED, cases.batch), Entry(FUSED, cases.alone)),
    ]
