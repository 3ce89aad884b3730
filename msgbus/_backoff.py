"""How long to wait before trying again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from msgbus._time import Duration, seconds

__all__ = ["RECONNECT", "Retry", "backoff"]


def backoff(attempt: int, *, base: float, factor: float, cap: float, jitter: bool = True) -> float:
    """Return how many seconds to wait after failed attempt number *attempt* (from 1).

    ``min(cap, base * factor ** (attempt - 1))``, of which full jitter takes a random part, so that what failed
    together does not come back together (Marc Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    """
    try:
        delay = min(cap, base * factor ** (attempt - 1))
    except OverflowError:
        delay = cap
    return random.uniform(0, delay) if jitter else delay  # noqa: S311 - spreading load, not secrets


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often a failed message is handled again.

    Attempt *n* is followed by a wait of ``min(cap, base * factor ** (n - 1))`` seconds with full jitter. Attempts are
    counted across processes and restarts. After the last one the message is dead-lettered.

    Args:
        attempts: How often the handler may see the message in all; 1 for no retry.
        base: The first wait in seconds (or a timedelta).
        factor: What each further wait is multiplied by.
        cap: The longest wait in seconds (or a timedelta).
        jitter: Whether to wait a random part of that time instead of all of it.
        fatal: Exceptions that dead-letter the message at once, since trying again would not help.
    """

    attempts: int = 5
    base: Duration = 1.0
    factor: float = 2.0
    cap: Duration = 60.0
    jitter: bool = True
    fatal: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Retry(attempts=) must be at least 1 (one attempt, no retry), got {self.attempts}")
        if self.factor < 1:
            raise ValueError(f"Retry(factor=) must be at least 1, got {self.factor}")
        object.__setattr__(self, "base", seconds(self.base, "Retry(base=)"))
        object.__setattr__(self, "cap", seconds(self.cap, "Retry(cap=)"))
        object.__setattr__(self, "fatal", tuple(self.fatal))

    def delay(self, attempt: int) -> float:
        """Return how many seconds to wait after failed attempt number *attempt* (from 1)."""
        assert isinstance(self.base, float)
        assert isinstance(self.cap, float)
        return backoff(attempt, base=self.base, factor=self.factor, cap=self.cap, jitter=self.jitter)


RECONNECT = Retry(attempts=1, base=0.1, factor=2.0, cap=5.0)
"""How msgbus itself waits before it asks an unreachable broker or store again."""
