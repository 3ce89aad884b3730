"""Time, injectable: production reads the system's clock, tests turn the hands themselves."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Protocol

__all__ = ["Clock", "Duration", "SystemClock", "seconds"]

Duration = float | timedelta
"""A length of time: seconds, or a `datetime.timedelta`."""


class Clock(Protocol):
    """What msgbus needs of a clock. Adapters and stores take theirs from `AdapterConfig.clock`."""

    def now(self) -> float:
        """Return the wall-clock time in seconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump, for measuring how long something took."""
        ...

    async def sleep(self, delay: float) -> None:
        """Return after *delay* seconds of this clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, delay: float) -> None:
        """Sleep for *delay* seconds."""
        await asyncio.sleep(delay)


def seconds(value: Duration, name: str) -> float:
    """Return *value* in seconds.

    Raises:
        ValueError: It is negative, infinite or not a number; the text names the option *name*.
    """
    result = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 <= result < float("inf"):
        raise ValueError(f"{name} must be 0 or more seconds, got {value!r}")
    return result
