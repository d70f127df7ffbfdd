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
    candidate.<feature>  INT64 [C] | FP32 [C]
 -> logits, scores       FP32 [C, N] scores = sigmoid(logits + log_rates), candidates in the order sent

A logit is what training saw: where a task's negatives were sampled at rate w, log_rate = log(w) takes its score back to
the probability before sampling. It is the same for all candidates, so that it changes no order.

A string is sent as its 64-bit xxh3 hash; a missing value as `NO_VALUE` or `NO_NUMBER`, never as NaN. Where the contract
merges adjacent events, histories are sent merged: the Python client does so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serving.wire_input import (
    NO_NUMBER,
    NUMPY_DTYPES,
    Axis,
    Dtype,
    Input,
    RequestError,
    check_not_negative,
    check_range,
    checked_type,
)

MODEL = "marquee"
"""The name under which a ranker is served."""
FORMAT = 3
"""Of the contract's JSON; a reader refuses any other. 3 has candidate features and log rates."""
PARAMETER = "contract"
"""The parameter of the model's configuration that holds the contract."""
PROBE_REQUEST_ID = "marquee-probe"
"""A call with this request id is answered like any other and left out of the counters."""

NUM_ACTIONS = "num_actions"
"""The facet of merged events that counts their actions; a history that lacks it counts one for each event."""
MAX_TIMESTAMP_S = 253_402_300_799
"""The end of the year 9999: later than any clock, and earlier than today's date in milliseconds."""
MAX_EVENTS_BEFORE = 1 << 40
"""More events than any profile has, and so few that no sum with a history's length leaves 64 bits."""

Way = Literal["first", "last", "sum"]
"""What a merged event has of a facet: the first action's value, the last one's, or the sum."""


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
        if self.dtype not in NUMPY_DTYPES:
            raise ValueError(
                f"field {self.name!r}: dtype is {self.dtype!r}; use one of {', '.join(NUMPY_DTYPES)}"
            )


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
        log_rates: N numbers, added to the logits before they become scores; 0 where no negative was left out.
        limits: of a call.
        merge_adjacent: whether a history's adjacent events on one item are sent as one.
        candidate: features that a candidate has in this request only; those for training alone are not among them.
    """

    model: str
    facets: tuple[Field, ...]
    context: tuple[Field, ...]
    profile: tuple[Field, ...]
    tasks: tuple[str, ...]
    log_rates: tuple[float, ...]
    limits: Limits
    merge_adjacent: bool = False
    candidate: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        if len(self.log_rates) != len(self.tasks):
            raise ValueError(
                f"Contract.log_rates is {list(self.log_rates)}; it must have a number for each task of"
                f" {', '.join(self.tasks)}"
            )

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
            *_inputs("candidate", "candidate", self.candidate),
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
            name: tuple(Field(**field) for field in plain[name])
            for name in ("facets", "context", "profile", "candidate")
        }
        limits = Limits(**plain["limits"])
        return Contract(
            model=plain["model"],
            tasks=tuple(plain["tasks"]),
            log_rates=tuple(plain["log_rates"]),
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
            values = checked_type(spec, arrays)
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
        check_range(arrays, "num_events_before", 0, MAX_EVENTS_BEFORE, "MAX_EVENTS_BEFORE")
        for name in ("history.timestamp", "request.timestamp"):
            check_range(arrays, name, -MAX_TIMESTAMP_S, MAX_TIMESTAMP_S)
        for field in self.facets:
            if field.merged == "sum":
                check_not_negative(arrays, f"history.{field.name}")

    def _checked_lengths(self, arrays: Mapping[str, NDArray]) -> dict[Axis, int]:
        """Rows of every axis, from the two length inputs."""
        by_name = {spec.name: spec for spec in self.inputs}
        history = checked_type(by_name["history_lengths"], arrays)
        candidates = checked_type(by_name["candidate_lengths"], arrays)
        if not 1 <= len(history) <= self.limits.max_requests:
            limit = f"a call has 1 to max_requests = {self.limits.max_requests} requests"
            raise RequestError("history_lengths", f"{len(history)} rows long", limit)
        check_range(arrays, "history_lengths", 0, self.limits.window, "window")
        check_range(arrays, "candidate_lengths", 1, self.limits.max_candidates, "max_candidates")
        return {"request": len(history), "event": int(history.sum()), "candidate": int(candidates.sum())}


def _inputs(prefix: str, axis: Axis, fields: tuple[Field, ...]) -> Iterator[Input]:
    for field in fields:
        yield Input(f"{prefix}.{field.name}", field.dtype, axis, field.max_values)


def _rows_of(axis: Axis, expected: int) -> str:
    if axis == "request":
        return f"history_lengths has {expected} rows, one for each request"
    return f"{'history' if axis == 'event' else 'candidate'}_lengths add up to {expected}"
