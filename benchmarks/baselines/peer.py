"""A peer's runtime behind the protocol: its graph compiled with the settings that were fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines.case_graph import CaseGraph, Inputs, case_graph
from benchmarks.baselines.memory import give_back_memory
from benchmarks.baselines.protocol import Arrays, Case

Choice = Mapping[str, Any]
"""Settings of a runtime, JSON values."""
Compiled = Callable[[Inputs], Sequence[NDArray]]
_ROUNDS, _RUNS, _DROPPED = 6, 5, 2


class Runtime(Protocol):
    """What compiles and runs graphs.

    Attributes:
        choices: settings to try; the first is the one to take untried.
    """

    choices: Sequence[Choice]

    def compile(self, graph: CaseGraph, choice: Choice) -> Compiled:
        """The graph, ready to run."""
        ...


class Peer:
    """Loads cases for one runtime. What was found fastest for a workload's whole request holds for its profile loaded
    later, and what was for its candidates for their other forms and numbers: compilers take minutes.

    Args:
        runtime: the peer's.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._chosen: dict[tuple[str, str], Choice] = {}

    def load(self, case: Case) -> PeerSession:
        """Compile the graph of a case."""
        key = (case.workload, "candidates" if case.part == "candidates" else "whole")
        choice = self._chosen.get(key, self._runtime.choices[0])
        return PeerSession(self._runtime, case, choice, lambda found: self._chosen.update({key: found}))


class PeerSession:
    """A case in a runtime; see `benchmarks.baselines.protocol.Session`."""

    def __init__(
        self, runtime: Runtime, case: Case, choice: Choice, chosen: Callable[[Choice], None]
    ) -> None:
        self._runtime = runtime
        self._graph = case_graph(case)
        self._requests = case.requests
        self._on_chosen = chosen
        self._take(choice, runtime.compile(self._graph, choice))

    def _take(self, choice: Choice, compiled: Compiled) -> None:
        self._choice, self._compiled = choice, compiled
        self.settings: dict[str, Any] = dict(choice)

    def tune(self) -> None:
        """Time all choices in turns, and keep the fastest; what can't be compiled is named, and is no choice."""
        tried: dict[str, float | str] = {}
        compiled: dict[int, Compiled] = {}
        for number, choice in enumerate(self._runtime.choices):
            try:
                same = choice == self._choice
                compiled[number] = self._compiled if same else self._runtime.compile(self._graph, choice)
                compiled[number](self._graph.inputs(0))
            except Exception as error:  # noqa: BLE001 — whatever a foreign compiler raises; the report names it
                compiled.pop(number, None)
                tried[_name(choice)] = f"{type(error).__name__}: {str(error)[:200]}"
        times: dict[int, list[float]] = {number: [] for number in compiled}
        for _ in range(_ROUNDS):
            for number, run in compiled.items():
                times[number].append(median(self._times(run)))
        medians = {number: median(values) for number, values in times.items()}
        best = min(medians, key=lambda number: medians[number])
        choice = self._runtime.choices[best]
        self._take(choice, compiled[best])
        self._on_chosen(choice)
        tried |= {_name(self._runtime.choices[number]): round(ms * 1e3, 4) for number, ms in medians.items()}
        self.settings["tried_ms"] = tried
        del compiled
        give_back_memory()

    def _times(self, run: Compiled) -> list[float]:
        """Seconds of a few runs, the first ones left out: another's threads may still be spinning."""
        times = []
        for number in range(_DROPPED + _RUNS):
            begin = perf_counter()
            run(self._graph.inputs(number))
            times.append(perf_counter() - begin)
        return times[_DROPPED:]

    def run(self, number: int) -> Arrays:
        """Outputs of the request `number`, or of the requests from there on, one after another."""
        if self._requests == 1:
            return self._compiled(self._graph.inputs(number))
        each = [self._compiled(self._graph.inputs(number + later)) for later in range(self._requests)]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    def expected(self, number: int) -> None:
        """None: peers are held to float32."""
        return


def _name(choice: Choice) -> str:
    return ", ".join(f"{name} {value}" for name, value in choice.items())
