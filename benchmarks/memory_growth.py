"""How much a process grows by ranking: its peak, less what is resident once everything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from benchmarks.baselines.process import Worker, WorkerLost, forget_peak, memory_bytes
from benchmarks.baselines.protocol import Case, to_json
from benchmarks.comparison import Patience

RUNS = 3


def memory_growth(start: Callable[[], Worker], case: Case, patience: Patience) -> int:
    """Bytes, of a fresh process that loads one case and runs it a few times.

    Raises:
        WorkerLost: it ended, hung, or could not compute the case.
    """
    with closing(start()) as worker:
        said = {"case": to_json(case)}
        loaded = worker.ask("load", patience.load_s, **said)
        forget_peak(worker.pid)
        resident = memory_bytes(worker.pid)["resident"]
        ran = (
            loaded if "error" in loaded else worker.ask("time", patience.answer_s, runs=RUNS, drop=0, **said)
        )
        if "error" in ran:
            raise WorkerLost(f"{worker.name}: {case.name}: {ran['error']}")
        return memory_bytes(worker.pid)["peak"] - resident
