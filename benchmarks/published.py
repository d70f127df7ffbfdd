"""Published figures on MovieLens-1M: leave one out, the last event is the test, all items ranked, history masked."""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """One row of somebody's table.

    Its models see ids and order; HSTU and what follows it see times as well.
    """

    source: str
    model: str
    hr10: float
    ndcg10: float
    num_items: int | None  # of the catalogue; None: not stated
    tie_order: str  # of events of the same second
    validation: str  # whether a validation event was held out

    def to_json(self) -> dict[str, Any]:
        """Plain values, the figures under the names that ours have."""
        plain = self._asdict()
        return {"hr@10": plain.pop("hr10"), "ndcg@10": plain.pop("ndcg10"), **plain}


_GENERATIVE = (3_706, "unstable tie order", "validation event not stated")
_ESASREC = (None, "stable tie order", "the event before the last held out for validation")

PUBLISHED = (
    Published("eSASRec re-run", "SASRec, sampled softmax", 0.2929, 0.1684, *_ESASREC),
    Published("eSASRec re-run", "HSTU", 0.3037, 0.1719, *_ESASREC),
    Published("eSASRec re-run", "eSASRec", 0.3133, 0.1772, *_ESASREC),
    Published("eSASRec re-run", "FuXi-alpha", 0.3164, 0.1813, *_ESASREC),
    Published("generative-recommenders README", "SASRec, sampled softmax", 0.2853, 0.1603, *_GENERATIVE),
    Published("generative-recommenders README", "HSTU", 0.3097, 0.1720, *_GENERATIVE),
    Published("generative-recommenders README", "HSTU-large", 0.3294, 0.1893, *_GENERATIVE),
    Published(
        "gSASRec",
        "gSASRec",
        0.3003,
        0.1726,
        3_416,
        "tie order not stated",
        "validation event not stated",
    ),
)
"""The first is the one to hold the row "ids and order only" against."""
