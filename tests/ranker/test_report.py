"""What a run says of itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ranker.training.report import Report


@pytest.mark.parametrize(
    ("entropies", "said"),
    [
        ([0.9, 0.7, 0.95], "was 0.7000 after epoch 2 and is 0.9500 now"),
        ([0.9, 0.8, 0.7], None),
        ([0.9, 0.700, 0.701], None),
        ([0.9, float("nan"), 0.7], None),
    ],
)
def test_a_run_that_overfits_is_told_of(entropies: list[float], said: str | None) -> None:
    lines: list[str] = []
    report = Report.__new__(Report)
    report.entropies = {}
    report.run = SimpleNamespace(config=SimpleNamespace(num_epochs=3))  # type: ignore[assignment]
    report.progress = SimpleNamespace(say=lines.append)  # type: ignore[assignment]
    for epoch, entropy in enumerate(entropies):
        report._warn_of_overfitting(epoch, [entropy, float("nan")])
    assert len(lines) == (said is not None)
    assert not lines or str(said) in lines[0]
