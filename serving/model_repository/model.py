"""What Triton Server's Python backend runs: tensors in and out by DLPack, errors, counters.

Copied into the model's version folder by `serving.export`; everything it calls is installed beside it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  # the backend's own

from serving.contract import PROBE_REQUEST_ID
from serving.model_folder import check_files
from serving.request_counters import RequestCounters
from serving.served_ranker import ServedRanker
from serving.threads import intra_op_threads
from serving.wire_input import RequestError

logger = logging.getLogger("serving.model")
FAILED = "the model failed on this request; see the server's log"


class TritonPythonModel:
    """One instance of the served ranker."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version folder; the server reports an exception as the model's failure to load."""
        folder = Path(args["model_repository"]) / args["model_version"]
        torch.set_num_threads(intra_op_threads(os.environ))
        check_files(folder)
        self.ranker = ServedRanker(folder)
        self.log_rates = torch.tensor(self.ranker.contract.log_rates)
        self.counters = RequestCounters(pb_utils.MetricFamily, args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with logits and scores, or with an error of its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        # Under overload most of the queue is calls whose callers have given up: computing them starves the others.
        if request.is_cancelled():
            return self._refusal("the caller gave up before the model began", pb_utils.TritonError.CANCELLED)
        try:
            return self._ranked(request)
        except RequestError as error:
            return self._refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception:
            # Whatever it is: raised, it would fail the other requests too, and tell callers its text and paths.
            logger.exception("the model failed on a request")
            return self._refusal(FAILED, pb_utils.TritonError.INTERNAL)

    def _ranked(self, request: Any) -> Any:
        # With NumPy 2 the backend's as_numpy() repeats the first element; DLPack is right. The arrays are views
        # of the request's memory, which outlives this call and no more.
        arrays = {tensor.name(): torch.from_dlpack(tensor).numpy() for tensor in request.inputs()}
        logits = self.ranker.rank(arrays)
        outputs = {"logits": logits, "scores": torch.sigmoid(logits + self.log_rates)}
        response = pb_utils.InferenceResponse(
            [pb_utils.Tensor.from_dlpack(name, tensor) for name, tensor in outputs.items()]
        )
        if request.request_id() != PROBE_REQUEST_ID:
            self.counters.count_answer(len(arrays["candidate_lengths"]), len(logits))
        return response

    def _refusal(self, message: str, code: int) -> Any:
        self.counters.count_error()
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
