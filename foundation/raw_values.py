"""Raw values: what facets and features look like after ingestion, and on the wire.

Categorical values and ids are int64 (a string is its xxh3 hash), numbers float32, multi-valued facets
int64 `[..., max_values]` padded with `NO_VALUE`. The sentinels are ordinary values of their types, so that a
missing value travels over the wire like any other; NaN is an error there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

NO_VALUE = np.iinfo(np.int64).min
"""A missing categorical value, or the padding of a multi-valued one."""

NO_NUMBER = np.finfo(np.float32).min
"""A missing number: its buckets say -1, "no value"; mask it before it meets a linear layer."""


def hash_string(text: str) -> int:
    """The 64-bit xxh3 hash (seed 0) of UTF-8 `text` as a signed integer: what stands for a string inside."""
    value = xxhash.xxh3_64_intdigest(text.encode("utf-8"))
    return value - (1 << 64) if value >= 1 << 63 else value


def hash_strings(texts: Sequence[str]) -> np.ndarray:
    """`hash_string` of each text, int64 `[len(texts)]`."""
    return np.fromiter((hash_string(text) for text in texts), dtype=np.int64, count=len(texts))
