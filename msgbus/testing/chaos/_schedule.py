"""Which faults come when: drawn from a seed, so that the seed replays them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BROKER_FAULTS", "PROXY_FAULTS", "WORKER_FAULTS", "Step", "make_schedule"]

WORKER_FAULTS = ("kill", "stop", "term")
"""SIGKILL, SIGSTOP for a while, SIGTERM."""
BROKER_FAULTS = ("restart", "kill", "stop")
"""An orderly restart, SIGKILL and a start, SIGSTOP for a while."""
PROXY_FAULTS = ("cut", "drop", "stall", "deafen", "delay", "half-close")
"""Connections refused, reset once, silent both ways, silent towards clients, slow, forgotten by one side."""

_INSTANT = frozenset({"kill", "term", "restart", "drop", "half-close"})
_CALM = 0.5
"""Seconds at the start in which nothing happens."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault.

    Args:
        at: Seconds after the start.
        what: Its name.
        seconds: How long it lasts, where it lasts.
        choice: A number from 0 to 1 that chooses whom or how.
    """

    at: float
    what: str
    seconds: float
    choice: float

    def __str__(self) -> str:
        return f"{self.at:6.2f} s {self.what} ({self.seconds:.2f} s, {self.choice:.3f})"


def make_schedule(
    seed: int | str, duration: float, faults: Sequence[str], *, gap: float = 1.0, longest: float = 4.0
) -> list[Step]:
    """Return the faults of one sequence.

    Args:
        seed: What the sequence is drawn from: the same seed gives the same faults.
        duration: Seconds until the last one has ended.
        faults: What to choose from; with nothing the schedule is empty.
        gap: Seconds between two faults, on the average.
        longest: The most seconds that one lasts.
    """
    draw = random.Random(seed)  # noqa: S311 - has to repeat, not to be secret
    steps: list[Step] = []
    at = _CALM
    while faults:
        at += draw.uniform(0.2, 2 * gap - 0.2)
        what, seconds, choice = draw.choice(list(faults)), draw.uniform(0.3, longest), draw.random()
        if what.rpartition(" ")[2] in _INSTANT:
            seconds = 0.0
        if at + seconds > duration:
            break
        steps.append(Step(round(at, 3), what, round(seconds, 3), choice))
        at += seconds
    return steps
