"""A ranking request as a caller writes it, and its way onto the wire. NumPy only.

Shapes: n events of one history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contract import MAX_EVENTS_BEFORE, NUM_ACTIONS, Contract, Field, Way
from serving.merging import merge_values, run_starts
from serving.raw_columns import Values, column, sequence, timestamps
from serving.wire_input import check_not_negative

_ID = Field("id")


@dataclass(frozen=True)
class History:
    """The events of one profile, oldest first.

    Attributes:
        item_id: `[n]` integers or strings.
        timestamp: `[n]` unix seconds.
        facets: every facet of the schema by name, `[n]` values, or `[n]` lists where multi-valued; None is
            "no value". `num_actions` may be left out: every event is one action then.
    """

    item_id: Values = ()
    timestamp: Values = ()
    facets: Mapping[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class RankRequest:
    """Candidates to be ranked for one profile at one time.

    Attributes:
        timestamp: unix seconds of the request.
        candidates: item ids, integers or strings.
        history: as much of the profile's history as is at hand, as it was logged: adjacent events on one item are
            merged here where the model was trained so, and what lies before the window is not sent.
        context: *when* and *where* facets of the request; what is left out counts as "no value".
        profile: profile features; what is left out counts as "no value".
        num_events_before: events of the profile that are older than those of `history`; where events are merged,
            of merged ones.
        candidate_features: what this request says of its candidates, a value for each of them, by name; what is left
            out counts as "no value".
    """

    timestamp: int
    candidates: Values
    history: History = field(default_factory=History)
    context: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    num_events_before: int = 0
    candidate_features: Mapping[str, Values] = field(default_factory=dict)

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> RankRequest:
        """A request from parsed JSON: the fields of this class, `history` an object with those of `History`.

        Raises:
            ValueError: a field is unknown or missing, or what holds them is no object.
        """
        values = dict(_mapping("request", plain))
        _check_names("request", values, [each.name for each in fields(RankRequest)])
        for name in ("timestamp", "candidates"):
            if name not in values:
                raise ValueError(f"request has no {name!r}; every request needs one")
        history = _mapping("history", values.pop("history", {}))
        _check_names("history", history, [each.name for each in fields(History)])
        return RankRequest(history=History(**history), **values)


def window_start(num_events: int, window: int, block: int) -> int:
    """The first event kept of a history of `num_events` events: max(0, ceil((n - window) / block) · block).

    A longer history drops events from its front a block at a time, so that what is computed of its prefix
    lasts.
    """
    return max(0, -(-(num_events - window) // block) * block)


def wire_arrays(contract: Contract, requests: Sequence[RankRequest]) -> dict[str, NDArray]:
    """The inputs, by name, of one call that carries `requests`; histories are cut to the window here.

    Raises:
        ValueError: a value has a wrong type or length, or a name is unknown.
    """
    if not requests:
        raise ValueError("requests is empty; a call carries at least one")
    parts = [_request_arrays(contract, request) for request in requests]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _request_arrays(contract: Contract, request: RankRequest) -> dict[str, NDArray]:
    candidates = column("candidates", _ID, request.candidates)
    return {
        **_history_arrays(contract, request),
        "request.timestamp": timestamps("timestamp", [request.timestamp]),
        **_single_values("request", "context", contract.context, request.context),
        **_single_values("profile", "profile", contract.profile, request.profile),
        "candidate_lengths": np.array([len(candidates)]),
        "candidate.item_id": candidates,
        **_candidate_values(contract.candidate, request.candidate_features, len(candidates)),
    }


def _single_values(
    prefix: str, where: str, declared: Sequence[Field], values: Mapping[str, Any]
) -> dict[str, NDArray]:
    """One row for each declared field."""
    _check_names(where, _mapping(where, values), [spec.name for spec in declared])
    return {
        f"{prefix}.{spec.name}": column(f"{where}.{spec.name}", spec, [values.get(spec.name)])
        for spec in declared
    }


def _candidate_values(
    declared: Sequence[Field], values: Mapping[str, Values], num_candidates: int
) -> dict[str, NDArray]:
    """A value of each declared field for every candidate."""
    where = "candidate_features"
    _check_names(where, _mapping(where, values), [spec.name for spec in declared])
    arrays = {}
    for spec in declared:
        given = values.get(spec.name)
        given = [None] * num_candidates if given is None else sequence(f"{where}.{spec.name}", given)
        if len(given) != num_candidates:
            raise ValueError(
                f"{where}.{spec.name} has {len(given)} values; there are {num_candidates} candidates"
            )
        arrays[f"candidate.{spec.name}"] = column(f"{where}.{spec.name}", spec, given)
    return arrays


def _history_arrays(contract: Contract, request: RankRequest) -> dict[str, NDArray]:
    """The history's inputs, cut to the window; adjacent events on one item are merged first where the model does."""
    limits = contract.limits
    raw = _history_values(contract, request.history)
    num_before = _events_before(request.num_events_before)

    def first_kept(num_events: int) -> int:
        return max(0, window_start(num_before + num_events, limits.window, limits.block) - num_before)

    if contract.merge_adjacent:
        whole = _merged(contract, _history_columns(contract, raw))
        cut = first_kept(len(whole["history.item_id"]))
        kept = {name: values[cut:] for name, values in whole.items()}
    else:
        cut = first_kept(len(raw["item_id"]))
        kept = _history_columns(contract, {name: values[cut:] for name, values in raw.items()})
    return {
        "history_lengths": np.array([len(kept["history.item_id"])]),
        "num_events_before": np.array([num_before + cut]),
        **kept,
    }


def _history_values(contract: Contract, history: History) -> dict[str, Values]:
    """Item, time and facets as the caller gave them, all of one length."""
    num_events = len(sequence("history.item_id", history.item_id))
    names = [facet.name for facet in contract.facets]
    _check_names("history.facets", _mapping("history.facets", history.facets), names)
    given = dict(history.facets)
    if contract.merge_adjacent:
        given.setdefault(NUM_ACTIONS, np.ones(num_events, dtype=np.float32))
    for name in names:
        if num_events and name not in given:
            raise ValueError(f"history.facets has no {name!r}; a history has all of {', '.join(names)}")
    raw = {"item_id": history.item_id, "timestamp": history.timestamp}
    raw |= {f"facets.{name}": given.get(name, ()) for name in names}
    for name, values in raw.items():
        label = name.removeprefix("facets.")
        if len(sequence(f"history.{label}", values)) != num_events:
            raise ValueError(f"history.{label} has {len(values)} values; history.item_id has {num_events}")
    return raw


def _history_columns(contract: Contract, raw: Mapping[str, Values]) -> dict[str, NDArray]:
    """Wire values of a history, by the names of their inputs."""
    return {
        "history.item_id": column("history.item_id", _ID, raw["item_id"]),
        "history.timestamp": timestamps("history.timestamp", raw["timestamp"]),
        **{
            f"history.{facet.name}": column(f"history.{facet.name}", facet, raw[f"facets.{facet.name}"])
            for facet in contract.facets
        },
    }


def _merged(contract: Contract, columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    starts = run_starts(columns["history.item_id"])
    ways: dict[str, Way] = {f"history.{facet.name}": facet.merged for facet in contract.facets}
    for name, way in ways.items():
        if way == "sum":  # which would hide a negative part
            check_not_negative(columns, name)
    return {name: merge_values(values, starts, ways.get(name, "first")) for name, values in columns.items()}


def _events_before(given: Any) -> int:
    is_number = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if not is_number or not 0 <= given <= MAX_EVENTS_BEFORE:
        raise ValueError(
            f"num_events_before is {given!r}; it must be a whole number from 0 to {MAX_EVENTS_BEFORE}"
        )
    return int(given)


def _mapping(where: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; it must be a mapping from names to values")
    return given


def _check_names(where: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{where} has an unknown field {name!r}; known are {', '.join(known) or 'none'}")
