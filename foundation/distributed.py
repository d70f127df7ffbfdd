"""The processes of a training run: torchrun's, or one alone, for which everything here is a no-op.

A step's work is cut into parts, of which rank r takes part p where p % world size = r; what the parts add up
to is the same however many processes share them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore, TCPStore

from foundation.errors import DataError

# How long processes wait for rank 0 to start, and for an answer where it said that its store is.
START_TIMEOUT = timedelta(minutes=10)
STORE_TIMEOUT = timedelta(seconds=1)
# Other processes wait this long for the first, when it works alone; gloo's own limit is half an hour.
LONGEST_WAIT = timedelta(days=7)
_STORE_PORT = "marquee/store_port"
_GLOO = "gloo/transport"


@contextmanager
def process_group(alone: bool = False) -> Iterator[tuple[int, int]]:
    """Joins the processes that torchrun started, over gloo; yields (rank, world size).

    Processes of one machine divide its cores among them: left to the scheduler, they get in each other's way (two
    co-training on two cores took 6 % longer a step).

    Args:
        alone: without torchrun, make a group of one (TorchRec needs one) instead of none.

    Raises:
        DataError: another process ended while this one waited for it.
    """
    # Before the group is made: its threads keep to the cores of the thread that starts them.
    with _own_share(), _group(alone):
        yield rank(), world_size()


@contextmanager
def _group(alone: bool) -> Iterator[None]:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        here, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", store=_store_of_this_start(), rank=here, world_size=processes)
    elif "RANK" in os.environ:
        dist.init_process_group("gloo")
    elif alone:
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    else:
        yield
        return
    try:
        yield
        # Nobody leaves while another rank may still be sending.
        barrier()
    except RuntimeError as error:
        # Gloo has no error of its own for it. Where it was met tells nothing; what counts, the other process said.
        if _GLOO not in str(error):
            raise
        reason = str(error).partition(". ")[0]
        raise DataError(
            f"process {rank()}: lost another process, which may have said why: {reason}"
        ) from None
    finally:
        dist.destroy_process_group()


@contextmanager
def _own_share() -> Iterator[None]:
    """Keeps to this process's cores, where torchrun says how many processes its machine has, and to as many threads."""
    if "LOCAL_RANK" not in os.environ or "LOCAL_WORLD_SIZE" not in os.environ:
        yield
        return
    available, threads = os.sched_getaffinity(0), torch.get_num_threads()
    share = own_cores(available, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    os.sched_setaffinity(0, share)
    # More threads than cores would wait for one another.
    torch.set_num_threads(min(threads, len(share)))
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)
        torch.set_num_threads(threads)


def own_cores(available: Iterable[int], local_rank: int, local_world_size: int) -> set[int]:
    """The cores of one of a machine's processes: an even share, or all where there are fewer than processes."""
    cores = sorted(available)
    if len(cores) < local_world_size:
        return set(cores)
    first, last = (len(cores) * each // local_world_size for each in (local_rank, local_rank + 1))
    return set(cores[first:last])


def _store_of_this_start() -> TCPStore:
    """A store that knows nothing of an earlier start of these processes, kept by the process of rank 0.

    torchrun's own (torch 2.13) lives on when it starts killed processes again, and then tells them where the
    killed ones listened; it serves here to say on which port the new store is.

    Raises:
        RuntimeError: rank 0 didn't come within `START_TIMEOUT`.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    told = TCPStore(host, port, is_master=False, timeout=START_TIMEOUT)
    if os.environ["RANK"] == "0":
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        told.set(_STORE_PORT, str(store.port))
        return store
    until_s = time.monotonic() + START_TIMEOUT.total_seconds()
    while True:
        try:
            return TCPStore(
                host,
                int(told.get(_STORE_PORT)),
                is_master=False,
                timeout=STORE_TIMEOUT,
                wait_for_workers=False,
            )
        except dist.DistNetworkError:
            # Still the port of an earlier start, where nobody listens any more.
            if time.monotonic() > until_s:
                raise


def has_group() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if has_group() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if has_group() else 1


def is_first_rank() -> bool:
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def barrier() -> None:
    """Waits until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def owned_parts(parts: int) -> list[int]:
    """Which of a step's `parts` this process works on."""
    return list(range(rank(), parts, world_size()))


def check_parts(parts: int) -> None:
    """Refuses a number of parts that the processes can't share evenly.

    Raises:
        DataError: `parts` isn't a multiple of the world size.
    """
    if parts % world_size():
        raise DataError(
            f"batch.parts is {parts} and there are {world_size()} processes; parts must be a multiple of the "
            f"processes: set --parts {world_size()}, or another --nproc-per-node"
        )


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """`tensor`, in place the sum over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_gradients(model: nn.Module) -> None:
    """Makes every gradient the sum over all processes, in one message.

    A gradient that is None on some processes counts as zeros there; None on all of them it stays None, so that
    the optimizer passes it over as it does in one process.
    """
    if world_size() == 1:
        return
    parameters = [each for each in model.parameters() if each.requires_grad]
    present = torch.tensor([float(each.grad is not None) for each in parameters])
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    bucket = torch.cat([present.to(gradients[0].device), *(each.flatten() for each in gradients)])
    all_reduce_sum(bucket)
    present, *summed = bucket.split([len(parameters), *(each.numel() for each in parameters)])
    for parameter, is_present, total in zip(parameters, present.tolist(), summed, strict=True):
        parameter.grad = total.view_as(parameter) if is_present else None


def first_rank_says(value: float) -> float:
    """Rank 0's `value` on every process, so that all decide alike; others pass anything."""
    box = torch.tensor([value], dtype=torch.float64)
    if world_size() > 1:
        dist.broadcast(box, src=0)
    return box.item()


def by_first_rank(work: Callable[[], None] | None) -> None:
    """Does `work` on rank 0, all others waiting for it however long it takes; every rank must call it, with a group.

    Args:
        work: of rank 0; the others' isn't heeded.

    Raises:
        DataError: `work` raised one; on every rank.
    """
    said: list[str | None] = [None]
    if is_first_rank() and work is not None:
        try:
            work()
        except DataError as error:
            said = [str(error)]
    waiting = dist.new_group(timeout=LONGEST_WAIT)
    assert isinstance(waiting, dist.ProcessGroup)
    dist.broadcast_object_list(said, src=0, group=waiting)
    dist.destroy_process_group(waiting)
    if said[0] is not None:
        raise DataError(said[0])
