"""What the Python backend runs, with a stand-in for the backend: one failure is one request's, and tells no secrets."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serving.repository import MODEL_SOURCE
from serving.wire_input import RequestError


class _Error(Exception):
    INVALID_ARG, INTERNAL, CANCELLED = range(3)

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _Response(SimpleNamespace):
    def __init__(self, tensors: list | None = None, error: _Error | None = None) -> None:
        super().__init__(tensors=tensors, error=error)


class _Request:
    def __init__(self, value: float, cancelled: bool = False) -> None:
        self._value, self._cancelled = torch.tensor([value]), cancelled

    def inputs(self) -> list[Any]:
        return [_Named("candidate_lengths", self._value)]

    def request_id(self) -> str:
        return ""

    def is_cancelled(self) -> bool:
        return self._cancelled


class _Named:
    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self._name, self._tensor = name, tensor

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class _Counters:
    num_answers = num_errors = 0

    def count_answer(self, num_requests: int, num_candidates: int) -> None:
        self.num_answers += num_requests

    def count_error(self) -> None:
        self.num_errors += 1


class _Ranker:
    """Fails on what is below 0, refuses 0, and remembers what it was given."""

    def __init__(self) -> None:
        self.ranked: list[float] = []

    def rank(self, arrays: Mapping[str, np.ndarray]) -> torch.Tensor:
        value = float(arrays["candidate_lengths"][0])
        self.ranked.append(value)
        if value < 0:
            raise RuntimeError("/a/path/on/the/server.py: out of memory")
        if value == 0:
            raise RequestError("candidate_lengths[0]", 0, "it must be at least 1")
        return torch.full((1, 2), value)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The served source's class, loaded but not initialised, around a stand-in ranker."""
    backend = ModuleType("triton_python_backend_utils")
    tensor = SimpleNamespace(from_dlpack=lambda name, values: (name, values.clone()))
    vars(backend).update(TritonError=_Error, InferenceResponse=_Response, Tensor=tensor)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("served_model_source", MODEL_SOURCE)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    loaded = source.TritonPythonModel()
    loaded.ranker, loaded.counters = _Ranker(), _Counters()
    loaded.log_rates = torch.tensor([math.log(0.25), 0.0])
    return loaded


def test_a_failure_is_that_requests_alone_and_its_text_stays_in_the_log(
    model: Any, caplog: pytest.LogCaptureFixture
):
    answers = model.execute([_Request(3.0), _Request(-1.0), _Request(0.0), _Request(5.0)])
    assert [answer.error is None for answer in answers] == [True, False, False, True]
    assert answers[3].tensors[0][1].tolist() == [[5.0, 5.0]]
    assert answers[1].error.code == _Error.INTERNAL
    assert str(answers[1].error) == "the model failed on this request; see the server's log"
    assert "/a/path/on/the/server.py: out of memory" in caplog.text
    assert "Traceback" in caplog.text
    assert answers[2].error.code == _Error.INVALID_ARG
    assert (model.counters.num_answers, model.counters.num_errors) == (2, 2)


def test_a_score_is_the_probability_before_negatives_were_sampled(model: Any):
    """At odds of e^3 with one negative in four kept, odds were a quarter of that before."""
    (answer,) = model.execute([_Request(3.0)])
    logits, scores = (values for _, values in answer.tensors)
    assert logits.tolist() == [[3.0, 3.0]]
    odds = scores / (1 - scores)
    assert odds[0].tolist() == pytest.approx([math.exp(3) / 4, math.exp(3)], rel=1e-4)


def test_a_request_whose_caller_gave_up_is_not_computed(model: Any):
    answers = model.execute([_Request(3.0, cancelled=True), _Request(5.0)])
    assert answers[0].error.code == _Error.CANCELLED
    assert answers[1].error is None
    assert model.ranker.ranked == [5.0]
    assert model.counters.num_errors == 1
