"""Reasons to stop a training before its last step: a signal, a loss that is not finite, a loss that runs away."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WINDOW = 20
"""Steps that the running mean of the loss reaches back, about."""
DIVERGED = 2.0
"""The loss runs away where it exceeds its best by this many times its best, or what it had gained until then."""
DIVERGED_STEPS = 100
"""For so many steps on end."""


class StoppedBySignalError(KeyboardInterrupt):
    """Training has saved its state and left, because it was asked to: by SIGTERM, or by Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT are put on instead of ending the program; a second one ends it.

    Outside the main thread, where Python does not let signals be handled, the list stays empty.
    """
    noted: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        noted.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


@dataclass
class LossWatch:
    """The running mean of the loss, and whether it runs away.

    It does when for 100 steps on end it lies above its best value by more than twice that value, or than twice what
    had been gained from the beginning until then, whichever is more: a likelihood may be negative.
    """

    steps: int = 0
    mean: float = 0.0
    first: float = 0.0
    """The mean when it first reached back far enough to count."""
    best: float = math.inf
    above: int = 0

    @property
    def limit(self) -> float:
        """What the mean must not stay above."""
        return self.best + DIVERGED * max(abs(self.best), self.first - self.best)

    def follow(self, loss: float) -> bool:
        """Take in the loss of a step. Returns whether training diverges."""
        self.steps += 1
        self.mean += (loss - self.mean) / min(self.steps, WINDOW)
        if self.steps == WINDOW:
            self.first = self.mean
        if self.steps >= WINDOW:
            self.best = min(self.best, self.mean)
            self.above = self.above + 1 if self.mean > self.limit else 0
        return self.above >= DIVERGED_STEPS
