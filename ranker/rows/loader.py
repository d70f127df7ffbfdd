"""Streams training rows: each process reads what its lanes need, in worker processes and a thread ahead of training.

What a step gets is `ranker.rows.plan`'s affair: any step can be started from without reading what came before it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from foundation.errors import DataError
from ranker.rows.plan import Piece, Plan, Window
from ranker.rows.rows import Rows, join

PREFETCHED_STEPS = 2
Prepared = TypeVar("Prepared")


class RowGroups(Protocol):
    """Where rows are read from; sent to worker processes."""

    def read(self, draw: int, group: int) -> Rows:
        """All rows of a row group.

        Raises:
            DataError: it can't be read, or isn't what the manifest says; names the file and the row group.
        """
        ...


@dataclass(frozen=True)
class LoaderConfig:
    """How rows are read.

    Attributes:
        workers: processes that read, for each process that trains; 0 to read in the training process.
        bad_rows: what becomes of a row group that can't be read: `stop`, or `skip` it, counted, with fewer requests
            in its window's batches.
    """

    workers: int = 0
    bad_rows: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be at least 0")


class Share(NamedTuple):
    """What some lanes give to a step."""

    step: int
    """Of the run (from 0)."""
    lanes: list[tuple[int, Rows]]
    """By lane, ascending; lanes without a part in the batch are left out."""
    skipped: dict[str, int]
    """Rows of row groups that couldn't be read for this step's window, by what was said of each."""


class LaneReader:
    """The shares of some lanes, step after step.

    Args:
        source: of row groups.
        plan: of the run.
        lanes: to read, ascending.
        bad_rows: see `LoaderConfig`.
    """

    def __init__(
        self, source: RowGroups, plan: Plan, lanes: list[int], bad_rows: Literal["stop", "skip"]
    ) -> None:
        self.source = source
        self.plan = plan
        self.lanes = [lane for lane in lanes if plan.quota(lane)]
        self.bad_rows: Literal["stop", "skip"] = bad_rows

    def shares(self, first: int, last: int) -> Iterator[Share]:
        """Of steps `first` to `last` of the run.

        Raises:
            DataError: a row group can't be read, and `bad_rows` is "stop" or nothing is left of a window.
        """
        step = first
        while step < last:
            window = self.plan.window(step)
            begin = window.epoch * self.plan.steps_per_epoch + window.first_step
            end = min(begin + window.num_steps, last)
            skipped: dict[str, int] = {}
            rows = [self._rows(lane, window, skipped) for lane in self.lanes]
            orders = [
                self.plan.order(lane, window, each.history_lengths)
                for lane, each in zip(self.lanes, rows, strict=True)
            ]
            for place in range(step - begin, end - begin):
                found = [each.take(order[place]) for each, order in zip(rows, orders, strict=True)]
                yield Share(begin + place, list(zip(self.lanes, found, strict=True)), skipped)
                skipped = {}
            step = end

    def _rows(self, lane: int, window: Window, skipped: dict[str, int]) -> Rows:
        """A lane's rows of a window; adds what couldn't be read to `skipped`."""
        draw, parts, said = self.plan.draw(window.epoch), [], ""
        for piece in self.plan.pieces(lane, window):
            try:
                parts.append(self._read(draw, piece))
            except DataError as error:
                if self.bad_rows == "stop":
                    raise
                said = str(error)
                skipped[said] = skipped.get(said, 0) + piece.last - piece.first
        if not parts:
            raise DataError(
                f"{said}; nothing that this window's batches need can be read: make the rows again"
            )
        return join(parts)

    def _read(self, draw: int, piece: Piece) -> Rows:
        rows = self.source.read(draw, piece.group)
        if piece.last - piece.first == len(rows):
            return rows
        return rows.take(np.arange(piece.first, piece.last))


class RowLoader:
    """One process' shares of a run's steps.

    Args:
        source: of row groups.
        plan: of the run.
        config: settings.
        rank, world_size: which process, of how many; lane `l` is read by process `l % world_size`.

    Raises:
        DataError: the number of processes doesn't divide the lanes, or there are more than requests in a batch.
    """

    def __init__(
        self, source: RowGroups, plan: Plan, config: LoaderConfig, rank: int = 0, world_size: int = 1
    ) -> None:
        if plan.config.lanes % world_size:
            raise DataError(
                f"lanes is {plan.config.lanes}; it must be a multiple of the number of processes, {world_size}"
            )
        if plan.batch_size < world_size:
            raise DataError(
                f"requests_per_batch is {plan.batch_size}; it must be at least the number of processes, {world_size}"
            )
        self.source, self.plan, self.config = source, plan, config
        self.lanes = [lane for lane in range(rank, plan.config.lanes, world_size) if plan.quota(lane)]

    def shares(self, first: int, last: int) -> Iterator[Share]:
        """This process' shares of steps `first` to `last` of the run (from 0).

        Raises:
            DataError: see `LaneReader.shares`.
        """
        workers = min(self.config.workers, len(self.lanes))
        if not workers:
            yield from LaneReader(self.source, self.plan, self.lanes, self.config.bad_rows).shares(
                first, last
            )
            return
        readers = [
            LaneReader(self.source, self.plan, self.lanes[worker::workers], self.config.bad_rows)
            for worker in range(workers)
        ]
        # The loader takes one item of each worker in turn: as many in a row as there are workers make a step.
        items = iter(DataLoader(_Shares(readers, first, last), batch_size=None, num_workers=workers))
        while parts := list(islice(items, workers)):
            skipped: dict[str, int] = {}
            for part in parts:
                if isinstance(part, str):
                    raise DataError(part)
                for said, number in part.skipped.items():
                    skipped[said] = skipped.get(said, 0) + number
            lanes = sorted((lane for part in parts for lane in part.lanes), key=_lane)
            yield Share(parts[0].step, lanes, skipped)


@contextmanager
def prefetched(shares: Iterator[Share], prepare: Callable[[Share], Prepared]) -> Iterator[Iterator[Prepared]]:
    """`prepare` of each share, computed in a thread some steps ahead of whoever takes them; errors come in their place.

    The thread ends with the context, at the latest.
    """
    ready: queue.Queue[Prepared | BaseException | None] = queue.Queue(PREFETCHED_STEPS)
    stopped = threading.Event()

    def put(item: Prepared | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for share in shares:
                put(prepare(share))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            put(error)

    def items() -> Iterator[Prepared]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="rows", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        stopped.set()
        thread.join()


class _Shares(IterableDataset[Share | str]):
    """The shares of a worker's lanes; an error, which a worker can't raise as it is, as its message."""

    def __init__(self, readers: list[LaneReader], first: int, last: int) -> None:
        self.readers, self.first, self.last = readers, first, last

    def __iter__(self) -> Iterator[Share | str]:
        info = get_worker_info()
        assert info is not None
        try:
            yield from self.readers[info.id].shares(self.first, self.last)
        except DataError as error:
            yield str(error)


def _lane(share: tuple[int, Rows]) -> int:
    return share[0]
