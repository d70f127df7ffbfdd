"""How far a training run is: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
FEW_STEPS = 100
"""With fewer optimizer steps than this a model has hardly moved from where it started."""


class Progress:
    """Shows steps, loss, how much is trained per second and time left, on stderr.

    Rates count the time inside training steps alone, from this process's start.

    Args:
        num_steps: of the whole run.
        first_step: steps done before this process started.
        note: shown behind the figures of every line.
    """

    def __init__(self, num_steps: int, first_step: int, note: str = "") -> None:
        self.num_steps = num_steps
        self.first_step = first_step
        self.note = f" · {note}" if note else ""
        self._amounts: Counter[str] = Counter()
        self.training_s = 0.0
        self._started_s = self._last_line_s = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=num_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        if self.num_steps < FEW_STEPS:
            self.say(f"only {self.num_steps} optimizer steps: too few to learn much; raise --epochs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def rates(self) -> dict[str, float]:
        """How much was trained per second of training step, by what was counted; empty before the first."""
        return {name: amount / self.training_s for name, amount in self._amounts.items()}

    def step(self, step: int, loss: float, seconds: float, **amounts: int) -> None:
        """Reports optimizer step `step` (from 1): its loss, the time it took, what it trained on (tokens=…)."""
        self._amounts.update(amounts)
        self.training_s += seconds
        rates = "".join(f" · {rate:,.0f} {name}/s" for name, rate in self.rates().items())
        figures = f"loss {loss:.4f}{rates}{self.note}"
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(1)
            return
        now_s = time.monotonic()
        if now_s - self._last_line_s < SECONDS_BETWEEN_LINES and step != self.num_steps:
            return
        self._last_line_s = now_s
        left_s = (now_s - self._started_s) / (step - self.first_step) * (self.num_steps - step)
        self.say(f"step {step:,}/{self.num_steps:,} · {figures} · {left_s:,.0f} s left")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
