"""Keeps a whole run within its time: what a run may take depends on how many are left and how long they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.bench.suite.cases import Case

__all__ = ["Schedule"]

_LEAST = 0.15  # seconds; a shorter run says nothing
_MEMORY = 0.9  # what the cases before count for: another broker is quicker or slower


class Schedule:
    """Tells how long a run of a case may take, and when all will be done.

    Args:
        cases: What is to be measured, broker by broker.
        contenders: How many there are on each broker.
        rounds: Of each case.
        seconds: What a run of a headline takes at most.
        minutes: What everything together should take.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        contenders: Sequence[int],
        *,
        rounds: int,
        seconds: float,
        minutes: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._rounds = rounds
        self._began = clock()
        self._ends = self._began + minutes * 60
        self._left = sum(self._guess(case, number) for number in contenders for case in cases)
        self._done = self._spent = 0.0
        self._slower = 1.0

    def _guess(self, case: Case, contenders: int) -> float:
        """Return about how many headline runs' time a case takes on one broker."""
        many = 1 if case.alone else contenders if case.headline else min(contenders, 3)
        return many * (self._rounds + 2) * case.weight

    def seconds(self, case: Case) -> float:
        """Return what a run of the case may take."""
        fair = max(self._ends - self._clock(), 0.0) / max(self._left, 1.0) / self._slower
        return max(min(fair, self._seconds), _LEAST) * case.weight

    def done(self, case: Case, contenders: int, *, asked: float, took: float, runs: int) -> None:
        """Note that a case was measured.

        Args:
            case: The case.
            contenders: How many there are on its broker.
            asked: Seconds per run that `seconds` gave.
            took: Seconds that the whole case took.
            runs: How many runs it was.
        """
        self._left -= self._guess(case, contenders)
        self._done = self._done * _MEMORY + runs * asked
        self._spent = self._spent * _MEMORY + took
        # What is fixed (connections, groups, growing backlogs) comes on top of what was asked for.
        self._slower = max(self._spent / self._done, 0.3) if self._done else 1.0

    def minutes_left(self) -> float:
        """Return about how many minutes all the rest takes."""
        fair = max(self._ends - self._clock(), 0.0) / max(self._left, 1.0) / self._slower
        return self._left * max(min(fair, self._seconds), _LEAST) * self._slower / 60
