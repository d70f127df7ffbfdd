"""What training hides from the model, so that it copes where it is missing: ids of items, contexts of requests.

Letters: T packed tokens, F facet columns, I item rows, N training events.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.joint_table import PADDING_ROW
from foundation.vocabulary import FIRST_KNOWN

# Of the training events, by time: what is new in the last tenth tells how many events meet a title without counts.
NEWEST_SHARE = 0.1
LEAST_COLD_SHARE = 0.01
"""Items are hidden at this rate at least, so that the shared id of unseen ones is always trained."""


def cold_share(item_rows: NDArray[np.int64], timestamps: NDArray[np.int64]) -> float:
    """How often an event meets a title that was never seen before: the rate at which training hides items.

    Measured as the share of the newest tenth of the events whose item does not occur in the nine tenths before.

    Args:
        item_rows: `[N]` of the training events, in any order.
        timestamps: `[N]` unix seconds.

    Returns:
        At least `LEAST_COLD_SHARE`.
    """
    order = np.argsort(timestamps, kind="stable")
    newest = round(len(order) * NEWEST_SHARE)
    if not newest:
        return LEAST_COLD_SHARE
    before, last = np.split(item_rows[order], [len(order) - newest])
    return max(LEAST_COLD_SHARE, float(np.mean(~np.isin(last, before))))


def hidden_items(num_rows: int, share: float, rng: np.random.Generator) -> Tensor:
    """Bool `[I]`: about `share` of the known items; never the two special rows."""
    hidden = rng.random(num_rows) < share
    hidden[:FIRST_KNOWN] = False
    return torch.from_numpy(hidden)


def mask_context(
    facet_ids: NDArray[np.int64], request_columns: slice, share: float, rng: np.random.Generator
) -> None:
    """Takes from about `share` of the tokens, in place, what is known as their event begins.

    So a request without time and context has a defined representation, whatever it is used for. (The biases of
    "hstu" blocks read times beside the facets, and are not masked.)

    Args:
        facet_ids: `[T, F]`.
        request_columns: `Tokenizer.request_columns`.
    """
    facet_ids[rng.random(len(facet_ids)) < share, request_columns] = PADDING_ROW
