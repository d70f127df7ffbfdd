"""What a training run was started with, kept beside its checkpoints: a resumed run must be the same run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from foundation.atomic import atomic_file
from foundation.dataset import Dataset
from foundation.distributed import is_first_rank
from foundation.errors import DataError

RECORD = "run.json"


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
