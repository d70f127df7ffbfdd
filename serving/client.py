"""A client of the served model: `Client(url).rank(request) -> scores`. NumPy and tritonclient only, no torch.

    python -m serving.client --url 127.0.0.1:8001 --request sample_request.json

Shapes: C candidates of one request, N tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from serving.contract import MODEL, PARAMETER, Contract
from serving.rank_request import RankRequest, wire_arrays
from serving.raw_columns import Values, hash_string

DEFAULT_TIMEOUT_S = 5.0


class RankError(RuntimeError):
    """The server refused a request, or could not be asked.

    Attributes:
        status: the gRPC status, such as INVALID_ARGUMENT (the request breaks the contract; the message names
            field, value and limit), DEADLINE_EXCEEDED, UNAVAILABLE or INTERNAL.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class Ranked(NamedTuple):
    """One candidate and its score."""

    item: Any
    score: float


@dataclass(frozen=True, eq=False)
class RankScores:
    """The answer to one request, candidates in the order sent.

    Attributes:
        tasks: N names, in the order of the columns.
        candidates: as they stood in the request.
        logits: float32 `[C, N]`.
        scores: float32 `[C, N]`, probabilities: sigmoid of the logits, corrected for sampled negatives.
    """

    tasks: tuple[str, ...]
    candidates: Values
    logits: NDArray[np.float32]
    scores: NDArray[np.float32]

    def of(self, task: str) -> NDArray[np.float32]:
        """Scores `[C]` of one task."""
        if task not in self.tasks:
            raise ValueError(f"task is {task!r}; the model has {', '.join(self.tasks)}")
        return self.scores[:, self.tasks.index(task)]

    def top(self, k: int, task: str | None = None) -> list[Ranked]:
        """The k candidates with the highest scores of a task (the first one by default), best first.

        Equal scores keep the order of the request.
        """
        scores = self.of(task or self.tasks[0])
        best = np.argsort(-scores, kind="stable")[:k]
        return [Ranked(self.candidates[place], float(scores[place])) for place in best.tolist()]


class Client:
    """One connection to a server, kept open over calls; close it, or use it in a `with` statement.

    Args:
        url: host and port of the gRPC endpoint.
        timeout_s: seconds that a call may take.
        model: name of the served model.

    Raises:
        RankError: the server can't be reached or serves no such model.
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, model: str = MODEL) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0 seconds")
        self.timeout_s = timeout_s
        self._model = model
        self._connection = grpc.InferenceServerClient(url)
        try:
            self.contract = self._read_contract()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def rank(self, request: RankRequest) -> RankScores:
        """Score the candidates of one request.

        Raises:
            ValueError: the request can't be put on the wire (a wrong type, an unknown name).
            RankError: the server refused it or did not answer in time.
        """
        return self.rank_many([request])[0]

    def rank_many(self, requests: Sequence[RankRequest]) -> list[RankScores]:
        """Score several requests in one call; the answers are what `rank` gives for each."""
        arrays = wire_arrays(self.contract, requests)
        logits, scores = self.infer(arrays)
        ends = np.cumsum(arrays["candidate_lengths"])[:-1]
        pieces = zip(requests, np.split(logits, ends), np.split(scores, ends), strict=True)
        return [
            RankScores(self.contract.tasks, request.candidates, piece, piece_scores)
            for request, piece, piece_scores in pieces
        ]

    def infer(self, arrays: Mapping[str, NDArray], request_id: str = "") -> tuple[NDArray, NDArray]:
        """One call with wire arrays as `serving.contract` lists them; logits and scores come back, `[C, N]`.

        Raises:
            RankError: the server refused it or did not answer in time, or an array is not of the contract's type.
        """
        inputs = []
        try:
            for spec in self.contract.inputs:
                if spec.name in arrays:  # the server names what is missing
                    tensor = grpc.InferInput(spec.name, list(arrays[spec.name].shape), spec.dtype)
                    tensor.set_data_from_numpy(arrays[spec.name])
                    inputs.append(tensor)
            result = self._connection.infer(
                self._model, inputs, request_id=request_id, client_timeout=self.timeout_s
            )
        except InferenceServerException as error:
            raise _rank_error(error) from None
        assert result is not None
        logits, scores = (result.as_numpy(name) for name in self.contract.outputs)
        expected = (len(arrays["candidate.item_id"]), len(self.contract.tasks))
        if logits is None or scores is None or not logits.shape == scores.shape == expected:
            raise RankError(f"the answer is not of shape {list(expected)}", "INTERNAL")
        return logits, scores

    def _read_contract(self) -> Contract:
        try:
            answer = self._connection.get_model_config(self._model, client_timeout=self.timeout_s)
        except InferenceServerException as error:
            raise _rank_error(error) from None
        assert answer is not None
        parameters = answer.config.parameters  # a message, as_json is off
        if PARAMETER not in parameters:
            raise RankError(
                f"model {self._model!r} has no parameter {PARAMETER!r}: not a ranker", "NOT_FOUND"
            )
        return Contract.from_json(parameters[PARAMETER].string_value)


def _rank_error(error: InferenceServerException) -> RankError:
    return RankError(error.message(), str(error.status() or "UNKNOWN").removeprefix("StatusCode."))


def _titles(path: Path) -> dict[str, str]:
    titles = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(titles, dict):
        raise ValueError(f"{path}: holds {type(titles).__name__}; it must be an object from item id to title")
    return titles


def main() -> None:
    """Send a request from a JSON file (the fields of `RankRequest`) and print the best candidates.

    The exit status is 1 if the server gives no answer, and 2 if the files or options are wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m serving.client", description=main.__doc__)
    parser.add_argument("--url", required=True, help="host:port of the server's gRPC endpoint")
    parser.add_argument("--request", required=True, type=Path, help="JSON file with one request")
    parser.add_argument("--top", type=int, default=10, help="how many candidates to print (default: 10)")
    parser.add_argument("--task", help="task to rank by (default: the model's first)")
    parser.add_argument(
        "--titles", type=Path, help="JSON file: an object from item id to title, such as titles.json"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="seconds to wait for the answer"
    )
    options = parser.parse_args()
    try:
        request = RankRequest.from_json(json.loads(options.request.read_text(encoding="utf-8")))
        titles = _titles(options.titles) if options.titles else {}
        with Client(options.url, timeout_s=options.timeout_s) as client:
            best = client.rank(request).top(options.top, options.task)
    except (OSError, ValueError, RankError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, RankError) else 2) from None
    for place, (item, score) in enumerate(best, start=1):
        known_as = hash_string(item) if isinstance(item, str) else item
        print(f"{place:3d}  {score:.4f}  {titles.get(str(known_as), item)}")


if __name__ == "__main__":
    main()
