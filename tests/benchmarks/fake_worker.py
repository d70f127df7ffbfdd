"""A stand-in for `benchmarks.baselines.worker`: fake_worker.py VARIANT BEHAVIOUR JOURNAL.

It writes each run to the journal. Behaviours: `right`; `sick` computes something else; `hung` never answers once it is
timed; `dead` ends then; `broken` can't load; `loud` prints where libraries do.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.baselines.protocol as protocol
from benchmarks.baselines.protocol import Arrays, Case


class FakeSession:
    """Outputs that the case and the request's number decide."""

    def __init__(self, case: Case, name: str, behaviour: str, journal: Path) -> None:
        if behaviour == "broken":
            raise ValueError("no such graph")
        self.settings: dict[str, Any] = {"tuned": False}
        self._case, self._name, self._behaviour, self._journal = case, name, behaviour, journal

    def tune(self) -> None:
        self.settings["tuned"] = True

    def run(self, number: int) -> Arrays:
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(f"{self._name} {self._case.name} {number}\n")
        if number >= protocol.VERIFIED_REQUESTS:
            self._fail()
        if self._behaviour == "loud":
            print("a library's notice", flush=True)
        wrong = 0.5 if self._behaviour == "sick" else 0.0
        return [np.full((4, 2), self._case.requests + number + wrong, dtype=np.float32)]

    def expected(self, number: int) -> Arrays | None:
        return self.run(number) if self._name.startswith("fused_int8") else None

    def _fail(self) -> None:
        if self._behaviour == "hung":
            time.sleep(600)
        if self._behaviour == "dead":
            print("out of memory, says the library", file=sys.stderr, flush=True)
            os._exit(3)


if __name__ == "__main__":
    name, behaviour, file = sys.argv[1:]
    words, answers = protocol.own_streams()
    protocol.answer(lambda case: FakeSession(case, name, behaviour, Path(file)), words, answers)
