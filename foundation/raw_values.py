"""Raw values: what facets and features look like after ingestion, and on the wire.

Categorical values and ids are int64 (a string is its xxh3 hash), numbers float32, multi-valued facets int64
`[..., max_values]` padded with `NO_VALUE`. The sentinels are ordinary values of their types, so a missing value travels
over the wire like any other, where NaN is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

NO_VALUE = np.iinfo(np.int64).min
"""A missing categorical value, or the padding of a multi-valued one."""

NO_NUMBER = np.finfo(np.float32).min
"""A missing number: never feed it to a linear layer, look it up in its buckets (which say -1, "no value")."""


def hash_string(text: str) -> int:
    """The 64-bit xxh3 hash (seed 0) of UTF-8 `text` as a signed integer: the id of a string everywhere inside."""
    value = xxhash.xxh3_64_intdigest(text.encode("utf-8"))
    return value - (1 << 64) if value >= 1 << 63 else value


def hash_strings(texts: Sequence[str]) -> np.ndarray:
    """`hash_string` of each text, int64 `[len(texts)]`."""
    return np.fromiter((hash_string(text) for text in texts), dtype=np.int64, count=len(texts))
