"""Whether a served model answers rightly: the sample request of its repository, and the right answer to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from serving.client import Client, RankError
from serving.contract import MODEL, PROBE_REQUEST_ID
from serving.model_folder import SAMPLE_ANSWER, SAMPLE_REQUEST, VERSION
from serving.rank_request import RankRequest, wire_arrays
from serving.server_files import LaunchError

SERVED_TOLERANCE = 1e-4
"""Of max|difference| / max(1, max|logit|) between a served answer and the unsplit ranker's."""
TIMED_OUT = "DEADLINE_EXCEEDED"
"""How the problem of a server that did not answer in time begins."""


class Probe:
    """One real inference with a known answer.

    Ready endpoints are no proof: when the model's Python process has died they still say ready. The served model
    leaves probes out of its counters.

    Args:
        repository: written by serving.export.

    Raises:
        LaunchError: the repository has no sample.
    """

    def __init__(self, repository: Path) -> None:
        folder = repository / MODEL / VERSION
        try:
            sample = json.loads((folder / SAMPLE_REQUEST).read_text(encoding="utf-8"))
            answer = json.loads((folder / SAMPLE_ANSWER).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LaunchError(f"{error.filename}: not found; serving.export writes it") from None
        self._request = RankRequest.from_json(sample)
        self._logits = np.array(answer["logits"], dtype=np.float32)
        self._tolerance: float = answer.get("tolerance", SERVED_TOLERANCE)

    def problem(self, grpc_url: str, timeout_s: float) -> str | None:
        """What is wrong with the server; None if it answers rightly."""
        try:
            with Client(grpc_url, timeout_s=timeout_s) as client:
                arrays = wire_arrays(client.contract, [self._request])
                logits, _ = client.infer(arrays, request_id=PROBE_REQUEST_ID)
        except RankError as error:
            return f"{error.status}: {error}"
        difference = np.abs(logits - self._logits).max() / max(1.0, np.abs(self._logits).max())
        if not difference <= self._tolerance:
            return f"a wrong answer: it differs by {difference:.3g}, the limit is {self._tolerance:g}"
        return None
