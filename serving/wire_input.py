"""One tensor of the wire, and how a call is refused whose tensor isn't what it must be. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_VALUE = np.iinfo(np.int64).min
"""A missing categorical value, or the padding of a multi-valued one."""
NO_NUMBER = np.finfo(np.float32).min
"""A missing number."""

Dtype = Literal["INT64", "FP32"]
Axis = Literal["request", "event", "candidate"]
NUMPY_DTYPES: dict[Dtype, np.dtype] = {"INT64": np.dtype(np.int64), "FP32": np.dtype(np.float32)}


class RequestError(ValueError):
    """A request breaks the contract.

    Attributes:
        field: the input, with an index where one entry is at fault.
        value: what was sent.
        limit: what would be right.
    """

    def __init__(self, field: str, value: object, limit: str) -> None:
        super().__init__(f"{field} is {value}; {limit}")
        self.field, self.value, self.limit = field, value, limit


class Input(NamedTuple):
    """One tensor of the wire; `max_values` is its second dimension where it has one."""

    name: str
    dtype: Dtype
    axis: Axis
    max_values: int | None

    @property
    def numpy_dtype(self) -> np.dtype:
        """The NumPy type of its values."""
        return NUMPY_DTYPES[self.dtype]

    @property
    def missing(self) -> int | float:
        """What stands for "no value"."""
        return NO_VALUE if self.dtype == "INT64" else float(NO_NUMBER)


def checked_type(spec: Input, arrays: Mapping[str, NDArray]) -> NDArray:
    """The values of an input; raises RequestError where it is missing, or of another type or shape."""
    values = arrays.get(spec.name)
    if values is None:
        raise RequestError(spec.name, "missing", "every input is required; send missing values as such")
    if values.dtype != spec.numpy_dtype:
        raise RequestError(spec.name, f"of type {values.dtype}", f"its type must be {spec.numpy_dtype}")
    tail = () if spec.max_values is None else (spec.max_values,)
    if values.ndim != 1 + len(tail) or values.shape[1:] != tail:
        raise RequestError(
            spec.name, f"of shape {list(values.shape)}", f"its shape must be {['rows', *tail]}"
        )
    return values


def check_range(
    arrays: Mapping[str, NDArray], name: str, low: int, high: int, limit_name: str | None = None
) -> None:
    """Raises RequestError unless every value of the input `name` lies between `low` and `high`, both allowed."""
    values = arrays[name]
    wrong = (values < low) | (values > high)
    if wrong.any():
        row = int(wrong.argmax())
        upper = f"{limit_name} = {high}" if limit_name else f"{high}"
        raise RequestError(f"{name}[{row}]", values[row], f"it must be at least {low} and at most {upper}")


def check_not_negative(arrays: Mapping[str, NDArray], name: str) -> None:
    """Raises RequestError unless the numbers of the input `name` are missing or at least 0."""
    values = arrays[name]
    wrong = (values < 0) & (values != NO_NUMBER)
    if wrong.any():
        row = int(wrong.argmax())
        raise RequestError(
            f"{name}[{row}]", values[row], f"it must be at least 0; a missing number is {NO_NUMBER!s}"
        )
