"""What a training run was started with, kept beside its checkpoints: a resumed run must be the same run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from foundation.atomic import atomic_file
from foundation.dataset import Dataset
from foundation.distributed import first_rank_says, is_first_rank
from foundation.errors import DataError

RECORD = "run.json"
LOCK = "run.lock"
"""Names the process that trains here; locked while it lives, and only then."""


def data_hash(dataset: Dataset) -> str:
    """SHA-256 (hex) over events, catalogue and profile features, schema, split and protocol of `dataset`."""
    digest = hashlib.sha256(dataset.schema.hash().encode())
    digest.update(dataset.split.hash().encode())
    digest.update(dataset.protocol.encode())
    events, catalogue = dataset.events, dataset.catalogue
    arrays = [events.profile_id, events.offsets, events.item_id, events.timestamp, *events.facets.values()]
    arrays += [catalogue.item_id, *catalogue.features.values(), *dataset.profiles.features.values()]
    optional = (catalogue.launched_at, catalogue.content_embedding)
    arrays += [column for column in optional if column is not None]
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder`; every process of a run must enter.

    A torchrun that was killed leaves its workers behind, which train on: started again, two runs would remove one
    another's checkpoints.

    Raises:
        DataError: another run is training there.
    """
    path = folder / LOCK
    with ExitStack() as stack:
        if first_rank_says(float(is_first_rank() and not _lock(path, stack))):
            holder = path.read_text(encoding="utf-8")
            raise DataError(
                f"{folder}: another run is training here, {holder}; wait for it, end it, or choose another --out"
            )
        yield


def _lock(path: Path, stack: ExitStack) -> bool:
    """Locks `path` until `stack` closes; False if another process has locked it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.open("a", encoding="utf-8"))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except BlockingIOError:
        return False
    except OSError:
        # The read-only folder of a finished run, or a file system without locks, is no reason to stop.
        return True
    return True


def keep_record(folder: Path, settings: dict[str, Any]) -> None:
    """Writes `settings` (plain JSON values) to `folder`/run.json, or checks them against an earlier start's.

    Of several processes the first writes; all of them check.

    Raises:
        DataError: an earlier run in this folder was started with another setting; it is named.
    """
    path = folder / RECORD
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        if not is_first_rank():
            return
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")
        return
    earlier = _flat(json.loads(path.read_text(encoding="utf-8")))
    now = _flat(settings)
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            raise DataError(
                f"{path}: {name} was {earlier.get(name)!r} when this run started and is {now.get(name)!r} "
                "now; set it back, or choose another --out"
            )


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
