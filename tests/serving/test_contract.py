"""The contract: its JSON, the configuration made from it, and what it lets through."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue]

from foundation.raw_values import NO_NUMBER as STORED_NO_NUMBER
from foundation.raw_values import NO_VALUE as STORED_NO_VALUE
from serving.contract import PARAMETER, Contract, Field, Limits
from serving.model_config import config_pbtxt
from serving.wire_input import NO_NUMBER, NO_VALUE, RequestError

CONTRACT = Contract(
    model="marquee",
    facets=(Field("rating", "FP32"), Field("canvas"), Field("languages", "INT64", 2)),
    context=(Field("canvas"),),
    profile=(Field("country"), Field("age", "FP32"), Field("spoken", "INT64", 3)),
    tasks=("watch", "like"),
    log_rates=(-2.5, 0.0),
    limits=Limits(window=6, block=2, max_candidates=4, max_requests=3),
    candidate=(Field("retrieval", "FP32"), Field("row")),
)


def arrays_of(history: list[int], candidates: list[int]) -> dict[str, np.ndarray]:
    """A valid call with these lengths."""
    rows = {"request": len(history), "event": sum(history), "candidate": sum(candidates)}
    arrays = {}
    for spec in CONTRACT.inputs:
        shape = (rows[spec.axis],) if spec.max_values is None else (rows[spec.axis], spec.max_values)
        arrays[spec.name] = np.ones(shape, dtype=spec.numpy_dtype)
    arrays["history_lengths"] = np.array(history, dtype=np.int64)
    arrays["candidate_lengths"] = np.array(candidates, dtype=np.int64)
    return arrays


def test_json_gives_the_same_contract_back():
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


def test_another_format_is_refused():
    for other in (2, 9):
        with pytest.raises(ValueError, match=f"format is {other}; this code reads 3"):
            Contract.from_json(CONTRACT.to_json().replace('"format": 3', f'"format": {other}'))


def test_every_task_has_a_log_rate():
    with pytest.raises(
        ValueError, match=r"log_rates is \[-2\.5\]; it must have a number for each task of watch, "
    ):
        replace(CONTRACT, log_rates=(-2.5,))


def test_the_configuration_declares_every_tensor_and_carries_the_contract():
    quoted = replace(CONTRACT, tasks=('a "quoted" \\ task', "naïve"))
    config = MessageToDict(text_format.Parse(config_pbtxt(quoted), ModelConfig()))
    assert config["name"] == "marquee"
    assert "maxBatchSize" not in config, "0, which is left out"
    declared = {tensor["name"]: (tensor["dataType"], tensor["dims"]) for tensor in config["input"]}
    assert declared["history.rating"] == ("TYPE_FP32", ["-1"])
    assert declared["profile.spoken"] == ("TYPE_INT64", ["-1", "3"])
    assert declared["candidate.retrieval"] == ("TYPE_FP32", ["-1"])
    assert declared["candidate.row"] == ("TYPE_INT64", ["-1"])
    assert list(declared) == [spec.name for spec in CONTRACT.inputs]
    outputs = [(tensor["name"], tensor["dims"]) for tensor in config["output"]]
    assert outputs == [("logits", ["-1", "2"]), ("scores", ["-1", "2"])]
    assert Contract.from_json(config["parameters"][PARAMETER]["stringValue"]) == quoted


def test_missing_values_are_those_of_the_stored_data():
    assert NO_VALUE == STORED_NO_VALUE
    assert NO_NUMBER == STORED_NO_NUMBER


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=3),
    st.sampled_from([0, -1, 2**62, NO_VALUE]),
)
def test_any_ids_of_any_lengths_within_the_limits_are_fine(lengths: list[tuple[int, int]], item: int):
    arrays = arrays_of([h for h, _ in lengths], [c for _, c in lengths])
    arrays["candidate.item_id"][:] = item
    arrays["profile.age"][:] = NO_NUMBER
    arrays["candidate.retrieval"][:] = NO_NUMBER
    arrays["candidate.row"][:] = item
    arrays["history.timestamp"][:] = 4_102_444_800  # the year 2100
    CONTRACT.validate(arrays)


WRONG = [
    (
        "history_lengths",
        np.array([2, 7]),
        "history_lengths[1] is 7; it must be at least 0 and at most window = 6",
    ),
    ("history_lengths", np.array([-1, 4]), "history_lengths[0] is -1"),
    ("history_lengths", np.array([2, 2]), "history.item_id is 3 rows long; history_lengths add up to 4"),
    ("history_lengths", np.ones(4, np.int64), "a call has 1 to max_requests = 3 requests"),
    ("history_lengths", np.empty(0, np.int64), "history_lengths is 0 rows long; a call has 1"),
    ("history_lengths", np.array(3), "history_lengths is of shape []"),
    (
        "candidate_lengths",
        np.array([5, 1]),
        "candidate_lengths[0] is 5; it must be at least 1 and at most max_candidates = 4",
    ),
    ("candidate_lengths", np.array([3, 0]), "candidate_lengths[1] is 0; it must be at least 1"),
    ("candidate_lengths", np.array([3]), "candidate_lengths is 1 rows long; history_lengths has 2 rows"),
    (
        "candidate.item_id",
        np.ones(2, np.int64),
        "candidate.item_id is 2 rows long; candidate_lengths add up to 3",
    ),
    (
        "candidate.item_id",
        np.ones(3, np.float32),
        "candidate.item_id is of type float32; its type must be int64",
    ),
    (
        "candidate.retrieval",
        np.ones(2, np.float32),
        "candidate.retrieval is 2 rows long; candidate_lengths add up to 3",
    ),
    (
        "candidate.retrieval",
        np.array([1, 2, np.inf], np.float32),
        "candidate.retrieval[2] is inf; it must be finite",
    ),
    ("candidate.row", np.ones(3, np.int32), "candidate.row is of type int32; its type must be int64"),
    ("candidate.row", None, "candidate.row is missing"),
    ("history.rating", np.array([1, np.nan, 3], np.float32), "history.rating[1] is nan; it must be finite"),
    ("profile.age", np.array([1, np.inf], np.float32), "profile.age[1] is inf; it must be finite"),
    ("profile.age", np.array([1, 2], np.float64), "profile.age is of type float64; its type must be float32"),
    ("history.languages", np.ones((3, 5), np.int64), "history.languages is of shape [3, 5]"),
    ("history.languages", np.ones(3, np.int64), "history.languages is of shape [3]"),
    ("num_events_before", np.array([0, -4]), "num_events_before[1] is -4; it must be at least 0"),
    (
        "num_events_before",
        np.array([2**63 - 1, 0]),
        "num_events_before[0] is 9223372036854775807; it must be at least 0 and at most MAX_EVENTS_BEFORE = ",
    ),
    ("request.timestamp", np.array([1, 1_700_000_000_000]), "request.timestamp[1] is 1700000000000"),
    ("request.canvas", None, "request.canvas is missing"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG, ids=[case[2].split(";")[0] for case in WRONG])
def test_what_breaks_the_contract_is_named(field: str, value: np.ndarray | None, message: str):
    arrays = arrays_of([2, 1], [1, 2])
    CONTRACT.validate(arrays)
    if value is None:
        del arrays[field]
    else:
        arrays[field] = value
    with pytest.raises(RequestError) as caught:
        CONTRACT.validate(arrays)
    assert message in str(caught.value)
    assert caught.value.limit
    assert caught.value.field.split("[")[0] in arrays or value is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Limits(window=0), "Limits.window is 0"),
        (lambda: Limits(window=5, block=6), "Limits.block is 6; it must be at most window = 5"),
        (lambda: Field("x", "FP16"), "dtype is 'FP16'"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_configuration_is_named(build, message: str):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        build()


@pytest.mark.parametrize("module", ["serving.contract", "serving.client"])
def test_callers_need_no_torch(module: str):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'foundation', 'ranker', 'polars', 'xxhash']));"
        f"import {module}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
