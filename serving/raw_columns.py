"""From a caller's values to wire columns: strings hashed, missing values replaced, lists padded. NumPy only.

Shapes: n values, M values of a multi-valued field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contract import Field
from serving.wire_input import NO_NUMBER, NO_VALUE

Values = Sequence[Any] | NDArray[Any]
"""n integers, strings, booleans, numbers, lists of them, or None where there is no value."""


def hash_string(text: str) -> int:
    """The id of a string: the 64-bit xxh3 hash (seed 0) of its UTF-8 bytes, as a signed integer."""
    import xxhash  # noqa: PLC0415  # callers whose ids are integers do without it

    value = xxhash.xxh3_64_intdigest(text.encode("utf-8"))
    return value - (1 << 64) if value >= 1 << 63 else value


def column(where: str, field: Field, values: Values) -> NDArray:
    """Wire values of one field: int64 or float32 `[n]`, or int64 `[n, M]`.

    Args:
        where: how an error calls the field.
        field: its type.
        values: n of them.

    Raises:
        ValueError: a value is of the wrong type, or doesn't fit it.
    """
    if field.max_values is not None:
        return _lists(where, values, field.max_values)
    return _numbers(where, values) if field.dtype == "FP32" else _ids(where, values)


def timestamps(where: str, values: Values) -> NDArray[np.int64]:
    """Wire values of unix seconds, int64 `[n]`.

    Raises:
        ValueError: a value is no integer; unlike an id it can't be a string or missing.
    """
    array = np.asarray(sequence(where, values))
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iu"):
        raise ValueError(f"{where} is {values!r}; it must be whole unix seconds")
    return array.astype(np.int64)


def _ids(where: str, values: Values) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim == 1 and array.dtype.kind in "ib":
        return array.astype(np.int64)
    # Value by value: strings, None, integers beyond 63 bits, and the error for what is none of these.
    return np.fromiter((_id(where, value) for value in sequence(where, values)), dtype=np.int64)


def _id(where: str, value: Any) -> int:
    if value is None:
        return int(NO_VALUE)
    if isinstance(value, str):
        return hash_string(value)
    if not isinstance(value, int | np.integer | np.bool_):
        raise ValueError(f"{where} is {value!r}; it must be an integer, a string or None")
    if not -(1 << 63) <= int(value) < 1 << 63:
        raise ValueError(f"{where} is {value}; it must fit 64 signed bits")
    return int(value)


def _numbers(where: str, values: Values) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.ndim == 1 and array.dtype.kind in "fib":
        return array.astype(np.float32)
    numbers = [NO_NUMBER if value is None else value for value in sequence(where, values)]
    for value in numbers:
        if isinstance(value, str) or not np.isscalar(value):
            raise ValueError(f"{where} is {value!r}; it must be a number or None")
    return np.array(numbers, dtype=np.float32)


def _lists(where: str, values: Values, max_values: int) -> NDArray[np.int64]:
    """As in ingestion: None is no value and is dropped, the first M of the others are kept, a short list is padded."""
    padded = np.full((len(sequence(where, values)), max_values), NO_VALUE, dtype=np.int64)
    for row, given in enumerate(sequence(where, values)):
        if given is None:
            continue
        if isinstance(given, str) or np.ndim(given) != 1:
            raise ValueError(f"{where} is {given!r}; it must be a list or None")
        kept = _ids(where, [value for value in given if value is not None][:max_values])
        padded[row, : len(kept)] = kept
    return padded


def sequence(where: str, values: Values) -> Values:
    """`values`, if it has a length and an order.

    Raises:
        ValueError: it is a string, a single value or None.
    """
    if isinstance(values, str) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
        raise ValueError(f"{where} is {values!r}; it must be a list or an array")
    return values
