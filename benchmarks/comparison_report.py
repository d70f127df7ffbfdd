"""What `benchmarks.latency` says: the closing document, and its table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.baselines.protocol import Case
from benchmarks.compared import BEST_OF, FUSED, VARIANTS, Cases, Entry, quotients
from benchmarks.comparison import Findings
from benchmarks.floor import Floor
from benchmarks.percentiles import Latency, Ratio, ratio_of_medians, summarise


def latency_of(found: Findings, entry: Entry) -> Latency | None:
    """Over all blocks; None where it was not timed."""
    blocks = found.blocks.get(entry)
    return summarise(np.concatenate(blocks)) if blocks else None


def best_peer(found: Findings, case: Case, peers: Sequence[str] = BEST_OF) -> Entry | None:
    """The fastest of some peers on a case, by its median."""
    timed = [
        (latency_of(found, entry), entry) for name in peers if (entry := Entry(name, case)) in found.blocks
    ]
    return min(((latency.p50_ms, entry) for latency, entry in timed if latency), default=(0, None))[1]


def ratios(found: Findings, cases: Cases, floor: Floor) -> dict[str, Ratio]:
    """Of what was timed; a ratio lacks where either side does, or was too slow to be timed in as many blocks."""
    quotient = {}
    for name, above, other, peers in quotients(cases):
        below = best_peer(found, other, peers) if isinstance(other, Case) else other
        slow, fast = found.blocks.get(above, []), found.blocks.get(below, []) if below else []
        if slow and len(slow) == len(fast):
            quotient[name] = ratio_of_medians(slow, fast)
    fused = found.blocks.get(Entry(FUSED, cases.whole))
    if fused:
        quotient["fused_cold_vs_floor"] = floor.ratio(fused)
        quotient["fused_cold_vs_luckiest_floor"] = floor.ratio_at_luckiest(fused)
    return quotient


def document(found: Findings, cases: Cases, floor: Floor) -> dict[str, Any]:
    """What was measured, as plain values; a refused variant has its reason in `refused`, and no speed."""
    of_cases = {
        "profile": cases.profile,
        "candidates": cases.candidates,
        "candidates_plain": cases.plain,
        "candidates_folded": cases.folded,
    }
    named = {"cold": cases.whole, **of_cases}
    peers = {name: best_peer(found, case) for name, case in named.items()}
    quotient = ratios(found, cases, floor)
    return {
        "ceiling": floor.to_json(),
        "floor_ms": round(floor.ms, 3),
        "variants": _variants(found, cases.whole),
        "parts": {part: _p50s(found, case) for part, case in of_cases.items()},
        "best_peer": {name: peer.variant for name, peer in peers.items() if peer},
        "ratios": {name: round(ratio.value, 3) for name, ratio in quotient.items()},
        "ratios_ci95": {name: ratio.to_json()["ci95"] for name, ratio in quotient.items()},
        "refused": found.refused,
        "others": {
            name: _p50s(found, getattr(cases, name))
            for name in ("candidates_500", "candidates_1000", "batch", "alone")
        },
        "chosen": {str(entry): settings for entry, settings in found.settings.items()},
        "parity": {str(entry): parity for entry, parity in found.parity.items()},
    }


def _variants(found: Findings, whole: Case) -> dict[str, dict[str, Any]]:
    variants = {}
    for name, variant in VARIANTS.items():
        entry = Entry(name, whole)
        latency = latency_of(found, entry)
        if latency is None:
            continue
        variants[name] = {
            **latency.to_json(),
            "parity": found.parity[entry],
            "low_precision": variant.low_precision,
        }
        if entry in found.float32_difference:
            variants[name]["float32_difference"] = found.float32_difference[entry]
    return variants


def _p50s(found: Findings, case: Case) -> dict[str, float]:
    timed = {name: latency_of(found, Entry(name, case)) for name in VARIANTS}
    return {name: round(latency.p50_ms, 3) for name, latency in timed.items() if latency}


def ceiling_lines(ceiling: dict[str, Any]) -> list[str]:
    """What the machine reaches and what the workload asks of it, for people."""
    best, gflops, mbytes = ceiling["best"], ceiling["gflops"], ceiling["mbytes_of_weights"]
    shape = " x ".join(map(str, best["shape"]))
    return [
        f"ceiling, {ceiling['threads']} threads: {best['gflops_per_s']:,.0f} GFLOP/s over the workload's shapes "
        f"({best['library']}, M x K x N = {shape}), {ceiling['memory_gbytes_per_s']:,.1f} GB/s of memory",
        *(
            f"  {part:10} needs {gflops[part] * 1e3:8.1f} MFLOP and {mbytes[part]:6.2f} MB of weights"
            for part in gflops
        ),
        f"  floor: {ceiling['floor_ms']:.2f} ms",
    ]


def table(report: dict[str, Any]) -> str:
    """One row a variant, then the ratios with their intervals."""
    columns = ("p50_ms", "p95_ms", "p99_ms")
    parts = {
        "profile": "profile",
        "candidates": "candid.",
        "candidates_plain": "plain",
        "candidates_folded": "folded",
    }
    lines = [
        f"\n{'':17}{'parity':>9}"
        + "".join(f"{name:>10}" for name in (*columns, *parts.values()))
        + f"{'runs':>7}"
    ]
    for name, measured in report["variants"].items():
        row = f"{name:17}{measured['parity']:9.1e}" + "".join(
            f"{measured[column]:10.2f}" for column in columns
        )
        row += "".join(
            f"{report['parts'][part][name]:10.2f}" if name in report["parts"][part] else f"{'':10}"
            for part in parts
        )
        lines.append(f"{row}{measured['count']:7d}" + ("  int8" if measured["low_precision"] else ""))
    luckiest_ms = report["ceiling"]["luckiest_run"]["floor_ms"]
    lines.append(
        f"{'floor':26}{report['floor_ms']:10.2f}  ({luckiest_ms:.2f} at the rate of the luckiest product)"
    )
    lines += [f"{name:17} refused: {reason}" for name, reason in report["refused"].items()]
    lines.append("")
    for name, ratio in report["ratios"].items():
        low, high = report["ratios_ci95"][name]
        lines.append(f"{name:38}{ratio:7.3f}  [{low:.3f}, {high:.3f}]")
    return "\n".join(lines)
