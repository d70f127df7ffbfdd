"""The client apart from a server: its answers, and what it says when there is none."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from serving.client import Client, Ranked, RankError, RankScores, main

SCORES = np.array([[0.1, 0.9], [0.7, 0.2], [0.7, 0.1], [0.3, 0.8]], dtype=np.float32)


@pytest.fixture
def answer() -> RankScores:
    return RankScores(("watch", "like"), ["a", "b", "c", "d"], np.log(SCORES / (1 - SCORES)), SCORES)


def test_the_best_come_first_and_ties_keep_the_order_sent(answer: RankScores):
    assert [item for item, _ in answer.top(3)] == ["b", "c", "d"]
    assert answer.top(1, "like") == [Ranked("a", float(SCORES[0, 1]))]
    assert len(answer.top(10)) == 4


def test_scores_are_found_by_task(answer: RankScores):
    assert answer.of("like").tolist() == SCORES[:, 1].tolist()
    with pytest.raises(ValueError, match="task is 'buy'; the model has watch, like"):
        answer.of("buy")


def test_a_server_that_is_not_there_is_reported():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes the port, and nobody answers
        with pytest.raises(RankError) as caught:
            Client(f"127.0.0.1:{held.getsockname()[1]}", timeout_s=2)
    assert caught.value.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_a_time_limit_must_be_positive():
    with pytest.raises(ValueError, match="timeout_s is 0"):
        Client("127.0.0.1:1", timeout_s=0)


@pytest.mark.parametrize("text", ["[1]", "not JSON", '{"timestamp": 5}'])
def test_the_command_names_what_is_wrong_with_a_request_file_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
):
    path = tmp_path / "request.json"
    path.write_text(text)
    monkeypatch.setattr("sys.argv", ["client", "--url", "127.0.0.1:1", "--request", str(path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
