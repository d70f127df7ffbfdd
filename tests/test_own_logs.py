"""From somebody's own logs to a served ranker, by the four documented commands, in either mode.

A shop, of another shape than MovieLens: string ids, other facets, no titles and no features of items or profiles,
logged requests in shards, labels from a column and from what was ordered within a day, a price in each request, and
the slot in which a candidate was shown.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from serving.client import Client
from serving.rank_request import History, RankRequest

SCHEMA = """
[columns]
profile_id = "member"
item_id = "sku"
timestamp = "at"

[time]
channels = ["gap"]

[[facet]]
name = "shop"
role = "where"
kind = "categorical"

[[facet]]
name = "paid"
role = "what"
kind = "numeric"

[[candidate_feature]]
name = "price"
kind = "numeric"
column = "prices"

[[candidate_feature]]
name = "slot"
kind = "categorical"
column = "slots"
training_only = true
at_serving = 0

[[task]]
name = "click"
kind = "column"
column = "clicked"

[[task]]
name = "order"
kind = "window"
within_s = 86400
"""
MEMBERS, SKUS, EVENTS, SHOWN, DAY = 100, 24, 40, 8, 86_400
SMALL_DECODER = ("--decoder.width", 16, "--decoder.num-heads", 2, "--window.window", 16, "--window.block", 4)


def write_shop(folder: Path) -> None:
    """Members order from one quarter of the catalogue, and click what is cheap there and shown early."""
    rng = np.random.default_rng(0)
    events: list[dict[str, Any]] = []
    requests: list[dict[str, Any]] = []
    for member in range(MEMBERS):
        quarter = member % 4
        at = 1_700_000_000 + int(rng.integers(DAY))
        for number in range(EVENTS):
            at += int(rng.integers(600, 2 * DAY))
            ordered = quarter * SKUS // 4 + int(rng.integers(SKUS // 4))
            shop = "web" if rng.random() < 0.5 else "app"
            row = {"member": f"m{member}", "sku": f"sku-{ordered}", "at": at, "shop": shop}
            events.append({**row, "paid": float(rng.integers(1, 90))})
            if number % 2 == 0:
                shown = rng.permutation(SKUS)[:SHOWN]
                shown[rng.integers(SHOWN)] = ordered
                price = rng.integers(1, 90, SHOWN)
                wanted = (shown * 4 // SKUS == quarter) * 2.0 - (price > 45) - 0.2 * np.arange(SHOWN)
                requests.append(
                    {
                        "member": f"m{member}",
                        "at": at - 60,
                        "shop": shop,
                        "candidates": [f"sku-{sku}" for sku in shown],
                        "prices": price.astype(float).tolist(),
                        "slots": list(range(SHOWN)),
                        "clicked": (rng.random(SHOWN) < 1 / (1 + np.exp(1 - 2 * wanted)))
                        .astype(int)
                        .tolist(),
                    }
                )
    folder.mkdir()
    (folder / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    pl.DataFrame({"sku": [f"sku-{sku}" for sku in range(SKUS)]}).write_parquet(folder / "items.parquet")
    (folder / "requests").mkdir()
    for shard, start in enumerate(range(0, len(requests), 300)):
        part = pl.DataFrame(requests[start : start + 300])
        part.write_parquet(folder / "requests" / f"part-{shard}.parquet", row_group_size=100)


def command(module: str, *arguments: object) -> dict[str, Any]:
    """Run one of the documented commands; its closing document."""
    done = subprocess.run(
        [sys.executable, "-m", module, *(str(each) for each in arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def serving(repository: Path) -> Iterator[str]:
    """The fourth command; gives the address that it prints."""
    arguments = ("--repository", str(repository), "--threads", "1", "--grpc-port", "0", "--http-port", "0")
    with subprocess.Popen(
        [sys.executable, "-m", "serving.launch", *arguments, "--metrics-port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["grpc"]
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two commands."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder / "data")
    data = ("--data", folder / "data")
    command("foundation.pretrain", *data, "--out", folder / "foundation", "--epochs", 20, *SMALL_DECODER)
    command(
        "ranker.cotrain",
        *(*data, "--release", folder / "foundation" / "release", "--out", folder / "ranker"),
        *("--epochs", 12, "--requests-per-batch", 32, "--crossing-layers", 1),
    )
    return folder


def test_the_ranker_learns_both_labels(run: Path) -> None:
    document = json.loads((run / "ranker" / "metrics.json").read_text(encoding="utf-8"))
    for task in ("click", "order"):
        assert document["tasks"][task]["gauc"] > 0.6, task
    assert set(document["slices"]["shop"]) == {"web", "app"}


@pytest.mark.parametrize("mode", ["vector", "crossing"])
def test_it_is_served(run: Path, mode: str) -> None:
    repository = run / f"repository-{mode}"
    exported = command(
        "serving.export",
        *("--ranker", run / "ranker" / "ranker", "--out", repository, "--data", run / "data", "--mode", mode),
    )
    assert exported["mode"] == mode
    request = RankRequest(
        timestamp=1_701_000_000 + 6 * DAY,
        candidates=[f"sku-{sku}" for sku in range(SKUS)],
        candidate_features={"price": [10.0] * SKUS},
        history=History(
            [f"sku-{sku}" for sku in (1, 5, 3, 0, 2, 4)],
            [1_701_000_000 + DAY * day for day in range(6)],
            {"shop": ["web"] * 6, "paid": [20.0] * 6},
        ),
        context={"shop": "web"},
    )
    with serving(repository) as url, Client(url) as client:
        cheap = client.rank(request)
        best = [int(str(item).removeprefix("sku-")) for item, _ in cheap.top(SKUS // 4, task="order")]
        assert sum(sku < SKUS // 4 for sku in best) >= len(best) / 2
        dear = client.rank(RankRequest(**{**vars(request), "candidate_features": {"price": [80.0] * SKUS}}))
        assert np.mean(dear.scores[:, 0] < cheap.scores[:, 0]) > 0.8
