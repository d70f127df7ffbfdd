"""Whether a foundation release can make request rows of a dataset."""

from __future__ import annotations

import numpy as np

from foundation.dataset import Dataset
from foundation.release import Release, ReleaseError, check_cut, check_readable
from foundation.split import training_mask
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY


def check_release(release: Release, dataset: Dataset) -> int:
    """Makes sure that `release` reads `dataset` and has seen nothing that is held out here.

    Returns:
        how many items of the catalogue the release lacks: they are out of vocabulary.

    Raises:
        ReleaseError: names what differs.
    """
    check_readable(release, dataset)
    check_cut(release, dataset)
    check_counts(release, dataset)
    return dataset.num_items - len(release.vocabularies.items.keys)


def check_counts(release: Release, dataset: Dataset) -> None:
    """Makes sure that training here may see every event that `release` was trained on, as far as counts tell.

    Raises:
        ReleaseError: the release counts more training events of an item; names the item.
    """
    rows = release.vocabularies.items.lookup(dataset.events.item_id[training_mask(dataset)])
    trained = release.vocabularies.item_counts
    here = np.bincount(np.maximum(rows, OUT_OF_VOCABULARY), minlength=len(trained))
    more = np.flatnonzero(trained > here)
    if len(more):
        item = release.vocabularies.items.keys[more[0] - FIRST_KNOWN]
        raise ReleaseError(
            f"{dataset.folder / 'events.parquet'}: item {item}: the release was trained on {trained[more[0]]} of its"
            f" events and training may see {here[more[0]]} here: it may have seen what is held out; pre-train with"
            " this data"
        )
