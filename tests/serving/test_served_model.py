"""The served model over gRPC: right values, named errors, right counters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
from numpy.typing import NDArray

from serving.client import Client, RankError
from serving.contract import PROBE_REQUEST_ID
from serving.parity import Rank, difference
from serving.probe import SERVED_TOLERANCE
from serving.rank_request import History, RankRequest, wire_arrays
from serving.server import Server

MakeRequest = Callable[..., RankRequest]
Arrays = dict[str, NDArray]


@pytest.fixture
def arrays(client: Client, make_request: MakeRequest) -> Arrays:
    """Two requests, 8 events and 3, 5 candidates and 7; tests may change it."""
    return wire_arrays(client.contract, [make_request(8, 5), make_request(3, 7, profile=1)])


def counters(server: Server) -> dict[str, int]:
    page = urlopen(server.metrics_url, timeout=10).read().decode()
    samples = [line for line in page.splitlines() if line.startswith("marquee_")]
    return {line.split("{")[0]: int(float(line.split()[-1])) for line in samples}


@pytest.mark.parametrize(
    ("num_events", "num_candidates"), [(0, 1), (1, 1), (5, 2), (12, 150), (13, 40), (24, 7)]
)
def test_served_logits_are_those_of_the_unsplit_ranker(
    client: Client, make_request: MakeRequest, unsplit: Rank, num_events: int, num_candidates: int
):
    request = make_request(num_events, num_candidates)
    answer = client.rank(request)
    expected = unsplit(wire_arrays(client.contract, [request]))
    assert difference(expected, torch.from_numpy(answer.logits.copy())) <= SERVED_TOLERANCE
    np.testing.assert_allclose(answer.scores, torch.sigmoid(expected), atol=1e-4)
    assert answer.tasks == ("watch", "like")


def test_requests_in_one_call_get_their_own_answers(client: Client, make_request: MakeRequest, unsplit: Rank):
    requests = [make_request(4, 6), make_request(0, 2), make_request(20, 9, profile=2)]
    answers = client.rank_many(requests)
    assert [answer.logits.shape for answer in answers] == [(6, 2), (2, 2), (9, 2)]
    for request, answer in zip(requests, answers, strict=True):
        expected = unsplit(wire_arrays(client.contract, [request]))
        assert difference(expected, torch.from_numpy(answer.logits.copy())) <= SERVED_TOLERANCE


def test_an_appended_event_changes_the_scores(client: Client, make_request: MakeRequest):
    request = make_request(9, 20)
    history = request.history
    shorter = replace(
        request,
        history=History(
            history.item_id[:-1],
            history.timestamp[:-1],
            {name: values[:-1] for name, values in history.facets.items()},
        ),
    )
    assert np.abs(client.rank(request).logits - client.rank(shorter).logits).min() > 1e-4


def test_unknown_values_empty_histories_duplicates_and_the_future_work(
    client: Client, make_request: MakeRequest, unsplit: Rank
):
    known = make_request(5, 6)
    strange = replace(
        known,
        candidates=[-77, "no such item", known.candidates[0], known.candidates[0]],
        timestamp=4_102_444_800,
        context={"canvas": "no such canvas"},
        profile={"country": "no such country", "languages": [-5]},
    )
    empty = replace(strange, history=History())
    for request in (strange, empty):
        answer = client.rank(request)
        expected = unsplit(wire_arrays(client.contract, [request]))
        assert difference(expected, torch.from_numpy(answer.logits.copy())) <= SERVED_TOLERANCE
        assert np.array_equal(answer.logits[0], answer.logits[1]), "unknown items are all alike"
        assert np.array_equal(answer.logits[2], answer.logits[3])


WRONG = [
    (
        "candidate_lengths",
        [0, 12],
        "candidate_lengths[0] is 0; it must be at least 1 and at most max_candidates = 300",
    ),
    (
        "candidate_lengths",
        [301, 7],
        "candidate_lengths[0] is 301; it must be at least 1 and at most max_candidates = 300",
    ),
    ("candidate_lengths", [5, 6], "candidate.item_id is 12 rows long; candidate_lengths add up to 11"),
    ("candidate_lengths", [5], "candidate_lengths is 1 rows long; history_lengths has 2 rows"),
    ("history_lengths", [13, 3], "history_lengths[0] is 13; it must be at least 0 and at most window = 12"),
    ("history_lengths", [8, 4], "history.item_id is 11 rows long; history_lengths add up to 12"),
    ("num_events_before", [0, -1], "num_events_before[1] is -1; it must be at least 0"),
    ("request.timestamp", [0, 1_700_000_000_000], "request.timestamp[1] is 1700000000000; it must be"),
    ("profile.age", [np.nan, 3.0], "profile.age[0] is nan; it must be finite"),
]


@pytest.mark.parametrize(("field", "values", "message"), WRONG, ids=[case[2].split(";")[0] for case in WRONG])
def test_a_bad_request_is_named_and_the_next_is_answered(
    client: Client, arrays: Arrays, unsplit: Rank, field: str, values: list, message: str
):
    bad = {**arrays, field: np.array(values, dtype=arrays[field].dtype)}
    with pytest.raises(RankError) as caught:
        client.infer(bad)
    assert caught.value.status == "INVALID_ARGUMENT"
    assert message in str(caught.value)
    logits, _ = client.infer(arrays)
    assert difference(unsplit(arrays), torch.from_numpy(logits.copy())) <= SERVED_TOLERANCE


def test_no_candidates_at_all_are_refused(client: Client, make_request: MakeRequest):
    with pytest.raises(RankError, match=r"candidate_lengths\[0\] is 0; it must be at least 1"):
        client.rank(make_request(5, 0))


@pytest.mark.parametrize(
    ("name", "datatype", "dtype", "message"),
    [
        (
            "history.item_id",
            "FP32",
            np.float32,
            "'history.item_id' data-type is 'FP32', but .* expects 'INT64'",
        ),
        ("candidate.item_id", "INT32", np.int32, "'candidate.item_id' data-type is 'INT32', but"),
    ],
)
def test_a_wrong_type_is_refused_by_the_server_itself(
    server: Server, client: Client, arrays: Arrays, name: str, datatype: str, dtype: type, message: str
):
    inputs = []
    for spec in client.contract.inputs:
        values = arrays[spec.name].astype(dtype) if spec.name == name else arrays[spec.name]
        tensor = grpc.InferInput(spec.name, list(values.shape), datatype if spec.name == name else spec.dtype)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with grpc.InferenceServerClient(server.grpc_url) as plain:  # noqa: SIM117
        with pytest.raises(grpc.InferenceServerException, match=message):
            plain.infer("marquee", inputs)
    client.infer(arrays)


def test_a_wrong_type_that_the_client_meets_is_an_error_of_the_call(client: Client, arrays: Arrays):
    with pytest.raises(RankError, match="INT64"):
        client.infer({**arrays, "candidate.item_id": arrays["candidate.item_id"].astype(np.float32)})


def test_a_missing_input_is_named_by_the_server(client: Client, arrays: Arrays):
    missing = {name: values for name, values in arrays.items() if name != "request.timestamp"}
    with pytest.raises(RankError, match=r"missing required input\(s\) \['request\.timestamp'\]") as caught:
        client.infer(missing)
    assert caught.value.status == "INVALID_ARGUMENT"
    client.infer(arrays)


def test_counters_count_requests_candidates_and_errors(server: Server, client: Client, arrays: Arrays):
    before = counters(server)
    client.infer(arrays)
    client.infer(arrays)
    with pytest.raises(RankError):
        client.infer({**arrays, "candidate_lengths": np.array([5, 6])})
    client.infer(arrays, request_id=PROBE_REQUEST_ID)
    assert server.healthy()
    after = counters(server)
    assert {name: after[name] - before[name] for name in after} == {
        "marquee_requests_total": 4,
        "marquee_profiles_encoded_total": 4,
        "marquee_candidates_scored_total": 24,
        "marquee_errors_total": 1,
    }


def test_concurrent_callers_get_their_own_answers(server: Server, make_request: MakeRequest, unsplit: Rank):
    requests = [make_request(3 + number, 4 + number, profile=number % 4) for number in range(12)]

    def ask(request: RankRequest) -> NDArray:
        with Client(server.grpc_url, timeout_s=60) as own:
            return own.rank(request).logits.copy()

    with ThreadPoolExecutor(4) as callers, Client(server.grpc_url) as client:
        for request, logits in zip(requests, callers.map(ask, requests), strict=True):
            expected = unsplit(wire_arrays(client.contract, [request]))
            assert difference(expected, torch.from_numpy(logits)) <= SERVED_TOLERANCE


def test_a_deadline_is_kept_and_the_connection_goes_on(client: Client, make_request: MakeRequest):
    request = make_request(5, 5)
    patient = client.timeout_s
    client.timeout_s = 1e-6
    with pytest.raises(RankError) as caught:
        client.rank(request)
    assert caught.value.status == "DEADLINE_EXCEEDED"
    client.timeout_s = patient
    assert client.rank(request).logits.shape == (5, 2)


def test_a_model_that_is_not_served_is_reported(server: Server):
    with pytest.raises(RankError, match="other") as caught:
        Client(server.grpc_url, model="other")
    assert caught.value.status in ("NOT_FOUND", "INVALID_ARGUMENT")


def test_the_command_line_prints_the_best_candidates(
    server: Server, client: Client, model_folder: Path, tmp_path: Path
):
    request = RankRequest.from_json(json.loads((model_folder / "sample_request.json").read_text()))
    best = client.rank(request).top(2)
    titles = tmp_path / "titles.json"
    titles.write_text(f'{{"{best[0].item}": "The Best of All"}}')
    command = [sys.executable, "-m", "serving.client", "--url", server.grpc_url, "--top", "2"]
    command += ["--request", str(model_folder / "sample_request.json"), "--titles", str(titles)]
    lines = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert lines == [
        f"  1  {best[0].score:.4f}  The Best of All",
        f"  2  {best[1].score:.4f}  {best[1].item}",
    ]
    failed = subprocess.run([*command, "--task", "buy"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 2
    assert failed.stderr == "error: task is 'buy'; the model has watch, like\n"
