"""What `benchmarks.latency` and the process of one variant say to each other.

    python -m benchmarks.baselines.worker --variant onnxruntime --threads 2 --folder SCRATCH

The process reads one JSON object a line from its stdin and answers each with one line on the stdout that it started
with; whatever libraries print goes to its stderr, which is its log. It ends when its stdin does, and with its parent.

    {"do": "load", "case": {…}}                        {"settings": {…}}        what was chosen, for the report
    {"do": "tune", "case": {…}}                        {"settings": {…}}        alone on the machine: keep the fastest
    {"do": "compute", "case": {…}, "out": "x.npz"}     {"expected": false}      outputs, and what they should be
    {"do": "time", "case": {…}, "runs": 9, "drop": 3}  {"seconds": [9 times]}   3 more, first, that don't count
    whatever fails                                     {"error": "one line"}    the traceback is in the log

`load` may compile, and runs while others do; nothing is timed then. A case that was never loaded can't be timed. Times
are wall-clock seconds from NumPy inputs in memory to NumPy outputs in memory, taken in the process itself.

Shapes: B requests, C candidates over the batch, N tasks, D decoder width.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines.memory import give_back_memory

Part = Literal["whole", "profile", "candidates"]
Form = Literal["decomposed", "plain", "folded"]
VERIFIED_REQUESTS = 2
"""On which parity is checked."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Case:
    """One thing to compute. Equal cases have the same inputs and weights in every variant.

    Attributes:
        workload: name in `benchmarks.workload`: reference, long or crossing.
        part: `whole` from tokens to logits, nothing cached; `profile` up to the profile state; `candidates` from a
            profile state that is computed once, outside, to logits.
        form: of the candidate graph's first layer. decomposed: the profile's share computed once per request. plain: as
            the layers' authors wrote it. folded: the candidates' static share read from a table made at export. A
            variant with one form of its own takes that, whatever it says here.
        candidates: of each request; None for the workload's.
        tokens: of each history, the request's token included; None for the workload's.
        requests: B.
        together: the B requests in one call; else one call for each, one after another, and their outputs joined.
    """

    workload: str
    part: Part = "whole"
    form: Form = "decomposed"
    candidates: int | None = None
    tokens: int | None = None
    requests: int = 1
    together: bool = True

    @property
    def name(self) -> str:
        """Names the case in messages and files."""
        sizes = [f"C{self.candidates}"] * (self.candidates is not None)
        sizes += [f"T{self.tokens}"] * (self.tokens is not None)
        sizes += [f"B{self.requests}{'' if self.together else '-alone'}"] * (self.requests > 1)
        form = [] if self.part == "profile" or self.form == "decomposed" else [self.form]
        return "-".join([self.workload, self.part, *form, *sizes])


Arrays = Sequence[NDArray[np.float32]]


class Session(Protocol):
    """A case, loaded and ready to run.

    Attributes:
        settings: what was chosen (threads, shapes static or dynamic, precision), for the report.
    """

    settings: dict[str, Any]

    def tune(self) -> None:
        """Time the settings that there are to choose among, and keep the fastest. Nothing else runs meanwhile."""
        ...

    def run(self, number: int) -> Arrays:
        """The request `number` of the workload (modulo as many as it has), or the B requests from there on.

        Logits `[C, N]`; of a profile alone, the vectors `[B, D]`, then the keys and values that crossing reads.
        """
        ...

    def expected(self, number: int) -> Arrays | None:
        """What a reference of the same precision gives; None where float32's reference is the one to be held to."""
        ...


def answer(load: Callable[[Case], Session], words: IO[str], answers: IO[str]) -> None:
    """Answer each line of `words` with one line, until they end.

    Args:
        load: makes a case ready to run.
        words: what the parent asks.
        answers: where it reads.
    """
    sessions: dict[Case, Session] = {}
    for line in words:
        said = json.loads(line)
        case = Case(**said["case"])
        try:
            if said["do"] == "load":
                sessions[case] = load(case)
                give_back_memory()
            told = _do(sessions[case], said)
        except Exception as error:  # noqa: BLE001 — told to the parent, which names the variant and refuses it
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        print(json.dumps(told), file=answers, flush=True)


def _do(session: Session, said: dict[str, Any]) -> dict[str, Any]:
    if said["do"] == "load":
        return {"settings": session.settings}
    if said["do"] == "tune":
        session.tune()
        return {"settings": session.settings}
    if said["do"] == "compute":
        return {"expected": _write(Path(said["out"]), session)}
    assert said["do"] == "time", said
    seconds = []
    for number in range(said["drop"] + said["runs"]):
        begin = perf_counter()
        session.run(number)
        seconds.append(perf_counter() - begin)
    return {"seconds": seconds[said["drop"] :]}


def _write(out: Path, session: Session) -> bool:
    """The outputs as `computed_0`, …, and what they should be as `expected_0`, … where the session has its own."""
    expected, computed = [], []
    for number in range(VERIFIED_REQUESTS):
        expected += session.expected(number) or ()
        computed += [array.copy() for array in session.run(number)]
    named = {f"computed_{number}": array for number, array in enumerate(computed)}
    named |= {f"expected_{number}": array for number, array in enumerate(expected)}
    np.savez(out, **named)
    return bool(expected)


def to_json(case: Case) -> dict[str, Any]:
    """Plain values, for a line."""
    return asdict(case)


def own_streams() -> tuple[IO[str], IO[str]]:
    """The streams to the parent; what is printed from here on goes to stderr. The process dies with its parent.

    A parent that is killed can't wake a worker that it has stopped, and a stopped one sees no end of its stdin.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return sys.stdin, answers
