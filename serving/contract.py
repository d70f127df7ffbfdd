"""What the served model takes and returns: names, types, shapes and limits. NumPy only, for server and client.

Shapes: B ranking requests of one call, T history events over all of them, C candidates over all of them,
M values of a multi-valued field, N tasks.

    history_lengths      INT64 [B]   events of each request's history
    num_events_before    INT64 [B]   events of the profile that came before those sent
    history.item_id      INT64 [T]   request by request, oldest first
    history.timestamp    INT64 [T]   unix seconds
    history.<facet>      INT64 [T] | FP32 [T] | INT64 [T, M]
    request.timestamp    INT64 [B]
    request.<facet>      when and where facets: INT64 [B] | FP32 [B] | INT64 [B, M]
    profile.<feature>    INT64 [B] | FP32 [B] | INT64 [B, M]
    candidate_lengths    INT64 [B]
    candidate.item_id    INT64 [C]   request by request
 -> logits, scores       FP32 [C, N] scores = sigmoid(logits), candidates in the order sent

A string is sent as its 64-bit xxh3 hash; a missing value as `NO_VALUE` or `NO_NUMBER`, never as NaN. Where the contract
merges adjacent events, histories are sent merged: the Python client does so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MODEL = "marquee"
"""The name under which a ranker is served."""
FORMAT = 2
"""Of the contract's JSON; a reader refuses any other."""
PARAMETER = "contract"
"""The parameter of the model's configuration that holds the contract."""
PROBE_REQUEST_ID = "marquee-probe"
"""A call with this request id is answered like any other and left out of the counters."""

NO_VALUE = np.iinfo(np.int64).min
"""A missing categorical value, or the padding of a multi-valued one."""
NO_NUMBER = np.finfo(np.float32).min
"""A missing number."""
NUM_ACTIONS = "num_actions"
"""The facet of merged events that counts their actions; a history that lacks it counts one for each event."""
MAX_TIMESTAMP_S = 253_402_300_799
"""The end of the year 9999: later than any clock, and earlier than today's date in milliseconds."""
MAX_EVENTS_BEFORE = 1 << 40
"""More events than any profile has, and so few that no sum with a history's length leaves 64 bits."""

Dtype = Literal["INT64", "FP32"]
Way = Literal["first", "last", "sum"]
"""What a merged event has of a facet: the first action's value, the last one's, or the sum."""
Axis = Literal["request", "event", "candidate"]
_NUMPY: dict[Dtype, np.dtype] = {"INT64": np.dtype(np.int64), "FP32": np.dtype(np.float32)}


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
        return _NUMPY[self.dtype]

    @property
    def missing(self) -> int | float:
        """What stands for "no value"."""
        return NO_VALUE if self.dtype == "INT64" else float(NO_NUMBER)


@dataclass(frozen=True)
class Field:
    """A facet or feature of the schema, as it travels.

    Attributes:
        name: of the facet or feature.
        dtype: of its values.
        max_values: of a multi-valued one, else None.
        merged: what a merged event has of it; what is summed is never negative.
    """

    name: str
    dtype: Dtype = "INT64"
    max_values: int | None = None
    merged: Way = "last"

    def __post_init__(self) -> None:
        if self.dtype not in _NUMPY:
            raise ValueError(f"field {self.name!r}: dtype is {self.dtype!r}; use one of {', '.join(_NUMPY)}")


@dataclass(frozen=True)
class Limits:
    """The most that one call may carry.

    Attributes:
        window: history events of a request.
        block: events that drop from the front of a longer history at a time.
        max_candidates: candidates of a request.
        max_requests: requests of a call.
    """

    window: int = 200
    block: int = 40
    max_candidates: int = 2_000
    max_requests: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"Limits.{name} is {value}; it must be at least 1")
        if self.block > self.window:
            raise ValueError(f"Limits.block is {self.block}; it must be at most window = {self.window}")


@dataclass(frozen=True)
class Contract:
    """Inputs, outputs and limits of one served model.

    Attributes:
        model: its name in the model repository.
        facets: of events.
        context: the facets that a request itself has (*when* and *where*).
        profile: profile features.
        tasks: N names, in the order of the outputs' columns.
        limits: of a call.
        merge_adjacent: whether a history's adjacent events on one item are sent as one.
    """

    model: str
    facets: tuple[Field, ...]
    context: tuple[Field, ...]
    profile: tuple[Field, ...]
    tasks: tuple[str, ...]
    limits: Limits
    merge_adjacent: bool = False

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """Every input tensor, all of them required."""
        return (
            Input("history_lengths", "INT64", "request", None),
            Input("num_events_before", "INT64", "request", None),
            Input("history.item_id", "INT64", "event", None),
            Input("history.timestamp", "INT64", "event", None),
            *_inputs("history", "event", self.facets),
            Input("request.timestamp", "INT64", "request", None),
            *_inputs("request", "request", self.context),
            *_inputs("profile", "request", self.profile),
            Input("candidate_lengths", "INT64", "request", None),
            Input("candidate.item_id", "INT64", "candidate", None),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output tensors, FP32 `[C, N]` each."""
        return ("logits", "scores")

    def to_json(self) -> str:
        """The contract as one line of ASCII JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Contract:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or of another format.
        """
        plain = json.loads(text)
        found = plain.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"contract: format is {found!r}; this code reads {FORMAT}")
        groups = {
            name: tuple(Field(**field) for field in plain[name]) for name in ("facets", "context", "profile")
        }
        limits = Limits(**plain["limits"])
        return Contract(
            model=plain["model"],
            tasks=tuple(plain["tasks"]),
            limits=limits,
            merge_adjacent=plain["merge_adjacent"],
            **groups,
        )

    def validate(self, arrays: Mapping[str, NDArray]) -> None:
        """Check the inputs of one call.

        Unknown ids, duplicate candidates, empty histories and timestamps ahead of the clock are fine.

        Raises:
            RequestError: naming field, value and limit.
        """
        lengths = self._checked_lengths(arrays)
        for spec in self.inputs:
            values = _checked_type(spec, arrays)
            if len(values) != lengths[spec.axis]:
                raise RequestError(
                    spec.name, f"{len(values)} rows long", _rows_of(spec.axis, lengths[spec.axis])
                )
            if spec.dtype == "FP32" and not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise RequestError(
                    f"{spec.name}[{row}]",
                    values.flat[row],
                    f"it must be finite; a missing number is {NO_NUMBER!s}",
                )
        _check_range(arrays, "num_events_before", 0, MAX_EVENTS_BEFORE, "MAX_EVENTS_BEFORE")
        for name in ("history.timestamp", "request.timestamp"):
            _check_range(arrays, name, -MAX_TIMESTAMP_S, MAX_TIMESTAMP_S)
        for field in self.facets:
            if field.merged == "sum":
                check_not_negative(arrays, f"history.{field.name}")

    def _checked_lengths(self, arrays: Mapping[str, NDArray]) -> dict[Axis, int]:
        """Rows of every axis, from the two length inputs."""
        by_name = {spec.name: spec for spec in self.inputs}
        history = _checked_type(by_name["history_lengths"], arrays)
        candidates = _checked_type(by_name["candidate_lengths"], arrays)
        if not 1 <= len(history) <= self.limits.max_requests:
            limit = f"a call has 1 to max_requests = {self.limits.max_requests} requests"
            raise RequestError("history_lengths", f"{len(history)} rows long", limit)
        _check_range(arrays, "history_lengths", 0, self.limits.window, "window")
        _check_range(arrays, "candidate_lengths", 1, self.limits.max_candidates, "max_candidates")
        return {"request": len(history), "event": int(history.sum()), "candidate": int(candidates.sum())}


def _inputs(prefix: str, axis: Axis, fields: tuple[Field, ...]) -> Iterator[Input]:
    for field in fields:
        yield Input(f"{prefix}.{field.name}", field.dtype, axis, field.max_values)


def _checked_type(spec: Input, arrays: Mapping[str, NDArray]) -> NDArray:
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


def _check_range(
    arrays: Mapping[str, NDArray], name: str, low: int, high: int, limit_name: str | None = None
) -> None:
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


def _rows_of(axis: Axis, expected: int) -> str:
    if axis == "request":
        return f"history_lengths has {expected} rows, one for each request"
    return f"{'history' if axis == 'event' else 'candidate'}_lengths add up to {expected}"
