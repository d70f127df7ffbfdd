"""Triton Server's metrics endpoint: read counters, and what they grew by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.request import urlopen

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_TIMEOUT_S = 10


def read_counters(url: str) -> dict[str, float]:
    """All samples of a Prometheus text page, summed over labels: `{metric name: value}`.

    Args:
        url: of the metrics page, on the loopback interface in these benchmarks.
    """
    with urlopen(url, timeout=_TIMEOUT_S) as page:
        return parse_counters(page.read().decode("utf-8"))


def parse_counters(page: str) -> dict[str, float]:
    """The samples of a Prometheus text page; a metric with several label sets is summed."""
    totals: dict[str, float] = {}
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample:
            totals[sample["name"]] = totals.get(sample["name"], 0.0) + float(sample["value"])
    return totals


def growth(before: Mapping[str, float], after: Mapping[str, float], name: str) -> int:
    """By how much the counter `name` grew; one that did not exist yet counts from 0.

    Raises:
        ValueError: the server has no such counter, or it shrank, so the server was started anew in between.
    """
    if name not in after:
        raise ValueError(
            f"the metrics page has no counter {name!r}; it has {', '.join(sorted(after)) or 'none'}"
        )
    grown = after[name] - before.get(name, 0.0)
    if grown < 0:
        raise ValueError(
            f"counter {name!r} fell from {before[name]} to {after[name]}: the server was started anew"
        )
    return round(grown)
