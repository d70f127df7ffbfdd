"""Loads, checks and times variants in processes of their own; each in turn while all others are stopped.

    load      all processes at once, compiling included; nothing is timed
    tune      one after another: each keeps the fastest of its own settings, for what it loads later too
    check     one after another, on the same requests: whoever is wrong is not timed
    time      blocks; in each, rounds; in each round the variants in an order that moves on by one from block to block

A process that ends or hangs takes its variant out of the run, and the run goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines.process import Worker, WorkerLost
from benchmarks.baselines.protocol import VERIFIED_REQUESTS, Case, to_json
from benchmarks.compared import REFERENCE, UNSPLIT, VARIANTS, Entry, reference_case

DROPPED_RUNS = 3
SLOW_S = 1.0
"""A run that takes longer has one run in each of `SLOW_BLOCKS` blocks: its own length averages over disturbances."""
SLOW_BLOCKS = 3


class Patience(NamedTuple):
    """How long a process may take, in seconds, before it counts as hung."""

    load_s: float = 1_200
    answer_s: float = 600


@dataclass
class Findings:
    """What a comparison found out.

    Attributes:
        settings: what each variant chose, by entry.
        parity: largest difference from what it is held to, by entry.
        float32_difference: of low-precision entries, from the float32 reference.
        refused: why something was not timed, by the entry's or the variant's name.
        blocks: seconds of each run, by block, of all that was timed.
    """

    settings: dict[Entry, dict[str, Any]] = field(default_factory=dict)
    parity: dict[Entry, float] = field(default_factory=dict)
    float32_difference: dict[Entry, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    blocks: dict[Entry, list[list[float]]] = field(default_factory=dict)


class Comparison:
    """One run over processes that have been started.

    Args:
        workers: by variant, `REFERENCE` among them.
        folder: for outputs that are compared.
        say: told of each step.
        patience: with processes.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        folder: Path,
        say: Callable[[str], object],
        patience: Patience | None = None,
    ) -> None:
        self._workers = dict(workers)
        self._folder = folder
        self._say = say
        self._patience = patience or Patience()
        self._computed: dict[Case, list[NDArray[np.float32]]] = {}
        self._run_s: dict[Entry, float] = {}  # at the check, so roughly
        self.found = Findings()

    def timed(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those of `entries` that nothing was found wrong with, and whose process is there."""
        return [
            entry
            for entry in entries
            if entry.variant in self._workers and str(entry) not in self.found.refused
        ]

    def load(self, entries: Sequence[Entry]) -> None:
        """Load all at once, with what the reference computes for them; the processes are stopped afterwards.

        What was loaded before is left as it is.
        """
        both = dict.fromkeys([*_references(entries), *entries])
        wanted = [entry for entry in both if entry not in self.found.settings]
        for worker in self._workers.values():
            worker.wake()
        for entry in self.timed(wanted):
            self._guarded(entry, lambda at: self._workers[at.variant].send("load", case=to_json(at.case)))
        for entry in self.timed(wanted):
            self._guarded(entry, lambda at: self._loaded(at, self._workers[at.variant]))
        for worker in self._workers.values():
            worker.stop()

    def tune(self, entries: Sequence[Entry]) -> None:
        """Let each keep the fastest of its settings, alone on the machine."""
        for entry in self.timed(entries):
            answer = self._ask(entry, "tune")
            if answer is not None:
                self.found.settings[entry] = answer["settings"]
                self._say(f"{entry}: tuned")

    def check(self, entries: Sequence[Entry]) -> None:
        """Refuse what differs too much from the reference: max|difference| / max(1, max|output|).

        The reference's own parity is 0, or what the unsplit graph differs by where that takes part.
        """
        file = self._folder / "computed.npz"
        for entry in dict.fromkeys([*_references(entries), *entries]):
            if entry in self.found.parity or not self.timed([entry]):
                continue
            begin = monotonic()
            if self._ask(entry, "compute", out=str(file)) is not None:
                self._run_s[entry] = (monotonic() - begin) / VERIFIED_REQUESTS
                self._judge(entry, file)
        for entry in self.timed(entries):
            if entry.variant == UNSPLIT:
                self.found.parity[Entry(REFERENCE, entry.case)] = self.found.parity[entry]

    def time(
        self,
        groups: Sequence[Sequence[Entry]],
        num_blocks: int,
        num_runs: int,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Time what was not refused.

        Args:
            groups: the rounds of a block.
            num_blocks: G.
            num_runs: of an entry in a block, after `DROPPED_RUNS` that don't count.
            between: called before each block, while all processes are stopped.
        """
        slow = {entry for group in groups for entry in group if self._run_s.get(entry, 0) > SLOW_S}
        blocks_of_slow = set(np.linspace(0, num_blocks - 1, SLOW_BLOCKS).astype(int))
        for block in range(num_blocks):
            self._say(f"block {block + 1}/{num_blocks}")
            between()
            for group in groups:
                entries = self.timed(group)
                turn = block % max(1, len(entries))
                for entry in (*entries[turn:], *entries[:turn]):
                    if entry not in slow:
                        self._time(entry, num_runs, DROPPED_RUNS)
                    elif block in blocks_of_slow:
                        self._time(entry, 1, 0)
        for entry in [entry for entry in self.found.blocks if not self.timed([entry])]:
            del self.found.blocks[entry]

    def _time(self, entry: Entry, runs: int, drop: int) -> None:
        answer = self._ask(entry, "time", runs=runs, drop=drop)
        if answer is not None:
            self.found.blocks.setdefault(entry, []).append(answer["seconds"])

    def _loaded(self, entry: Entry, worker: Worker) -> None:
        answer = worker.receive(self._patience.load_s)
        if "error" in answer:
            self._refuse(str(entry), f"could not be loaded: {answer['error']}")
        else:
            self.found.settings[entry] = answer["settings"]
            self._say(f"{entry}: loaded")

    def _judge(self, entry: Entry, file: Path) -> None:
        with np.load(file) as arrays:
            computed, expected = (
                [arrays[f"{name}_{number}"] for number in range(sum(key.startswith(name) for key in arrays))]
                for name in ("computed", "expected")
            )
        if entry == Entry(REFERENCE, reference_case(entry.case)):
            self._computed[entry.case] = computed
            self.found.parity[entry] = 0.0
            return
        float32 = self._computed.get(reference_case(entry.case))
        if float32 is None:
            self._refuse(str(entry), f"{REFERENCE} has nothing to compare it with")
            return
        parity = difference(expected or float32, computed)
        self.found.parity[entry] = parity
        variant = VARIANTS[entry.variant]
        if variant.low_precision:
            self.found.float32_difference[entry] = difference(float32, computed)
        if variant.tolerance is not None and not parity <= variant.tolerance:
            self._refuse(str(entry), f"parity {parity:.2e} is above {variant.tolerance:.0e}: not timed")

    def _ask(self, entry: Entry, do: str, **said: Any) -> dict[str, Any] | None:
        """The answer of a process that is awake meanwhile; None where there is none, and the reason is noted."""
        if entry.variant not in self._workers:
            return None
        answers: list[dict[str, Any]] = []

        def ask(at: Entry) -> None:
            with self._workers[at.variant].awake() as worker:
                answers.append(worker.ask(do, self._patience.answer_s, case=to_json(at.case), **said))

        self._guarded(entry, ask)
        if answers and "error" in answers[0]:
            self._refuse(str(entry), f"{do} failed: {answers.pop()['error']}")
        return answers[0] if answers else None

    def _guarded(self, entry: Entry, act: Callable[[Entry], object]) -> None:
        """Do it, and go on without the variant if its process is lost."""
        if entry.variant not in self._workers:
            return
        try:
            act(entry)
        except WorkerLost as lost:
            self._workers.pop(entry.variant).close()
            self._refuse(entry.variant, f"at {entry.case.name}: {lost}")

    def _refuse(self, name: str, reason: str) -> None:
        self.found.refused[name] = reason
        self._say(f"{name}: {reason}")


def _references(entries: Iterable[Entry]) -> list[Entry]:
    return list(dict.fromkeys(Entry(REFERENCE, reference_case(entry.case)) for entry in entries))


def difference(expected: Sequence[NDArray], computed: Sequence[NDArray]) -> float:
    """max|difference| / max(1, max|expected|), the worst of all pairs of arrays; infinity where shapes differ."""
    if [array.shape for array in expected] != [array.shape for array in computed]:
        return float("inf")
    gaps = [
        np.abs(one.astype(np.float64) - other).max(initial=0) / max(1.0, np.abs(one).max(initial=0))
        for one, other in zip(expected, computed, strict=True)
    ]
    # Not max(): it would drop a NaN.
    return float(np.max(gaps, initial=0))
