"""Tables for people, from the plain values of a report."""

from __future__ import annotations

from typing import Any

COLUMNS = ("count", "p50_ms", "p95_ms", "p99_ms", "max_ms")
_WHAT = {
    "unsplit": "decoder per candidate, batched",
    "split": "decoder once per request, eager",
    "exported": "the served programs in this process",
    "served": "over gRPC, one request at a time",
}


def environment_lines(environment: dict[str, Any]) -> list[str]:
    """What the figures were measured on, in two lines."""
    return [
        f"{environment['processor']} · {environment['cores']} cores, {environment['threads']} threads · "
        f"{environment['torch_cpu_capability']} · load {environment['load_average_1min']}",
        f"Python {environment['python']} · torch {environment['packages'].get('torch')} · "
        f"commit {environment['commit'][:12]}",
    ]


def ceiling_lines(ceiling: dict[str, Any]) -> list[str]:
    """The machine's measured rates and the least that each way must cost, for people."""
    machine = ceiling["machine"]
    lines = [
        f"ceiling: {machine['matmul_gflops_per_s']:,.0f} GFLOP/s in matrix products, "
        f"{machine['memory_gbytes_per_s']:,.1f} GB/s of memory"
    ]
    for name in ("unsplit", "split"):
        work = ceiling[name]
        lines.append(
            f"  {name:8} needs {work['gflops']:9.3f} GFLOP and {work['mbytes']:8.2f} MB: "
            f"no less than {work['floor_ms']:.3f} ms"
        )
    return lines


def latency_table(report: dict[str, Any]) -> str:
    """One row per variant: parity, latencies, and how many times slower than `split` it is."""
    lines = [f"\n{'':10}{'parity':>9}" + "".join(f"{name:>10}" for name in COLUMNS) + f"{'x split':>10}"]
    for name, parity in report["parity"].items():
        row = f"{name:10}{parity:9.1e}"
        latency = report["latency"].get(name)
        if latency is None:
            lines.append(f"{row}  refused: {report['refused'][name]}")
            continue
        times = report["slower_than_split"].get(name)
        row += f"{latency['count']:10d}" + "".join(f"{latency[column]:10.2f}" for column in COLUMNS[1:])
        row += f"{times['ratio']:10.2f}" if times else f"{'':10}"
        lines.append(f"{row}  {_WHAT[name]}")
    open_loop = report.get("open_loop")
    if open_loop:
        lines.append(
            f"open loop at {open_loop['rate_per_s']:g} requests per second, over {open_loop['senders']} senders:"
        )
        for name in ("from_schedule", "from_send"):
            row = "".join(f"{open_loop[name][column]:10.2f}" for column in COLUMNS[1:])
            lines.append(f"  {name:17}{open_loop[name]['count']:10d}{row}")
    return "\n".join(lines)
