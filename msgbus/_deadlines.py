"""Many deadlines, one timer: a timer for each message costs more than most of what is done with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

T = TypeVar("T")
_SPACE = 0.01
"""Seconds between two looks at everything, at least: so much later may a deadline be noticed where there are many."""
_EARLY = 0.001
"""Seconds by which event loops may call too early."""


class Deadlines(Generic[T]):
    """Tells when something has taken too long.

    Args:
        expire: Called with what was added and not discarded in time.
    """

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._due: dict[T, float] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._rings = 0.0

    def add(self, item: T, after: float) -> None:
        """Expire *item* after so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + after
        self._due[item] = deadline
        if self._alarm is None or deadline < self._rings:
            self._set(loop, deadline)

    def discard(self, item: T) -> None:
        """Forget about *item*, if it is there."""
        self._due.pop(item, None)

    def stop(self) -> None:
        """Forget about everything."""
        self._due.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(when, self._ring)
        self._rings = when

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        self._alarm = None
        now = loop.time()
        over = [item for item, deadline in self._due.items() if deadline <= now + _EARLY]
        for item in over:
            if self._due.pop(item, None) is not None:  # not discarded by what became of another one
                self._expire(item)
        if self._due and self._alarm is None:
            self._set(loop, max(min(self._due.values()), now + _SPACE))
