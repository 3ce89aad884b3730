"""A clock whose hands the test turns."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count

__all__ = ["VirtualClock"]

_TURNS = 20
"""Event-loop turns that woken tasks get before the hands move on. Too few and time passes before a task that was
woken by another one has looked at the clock; more only costs time."""


class VirtualClock:
    """A clock that stands still until `advance` is called.

    Args:
        start: The time it shows at first, in seconds since 1970.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def now(self) -> float:
        """Return the time it shows."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds since it was made."""
        return self._now - self._start

    async def sleep(self, delay: float) -> None:
        """Return once the clock has been advanced by *delay* seconds."""
        if delay <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self._now + delay, next(self._numbers), future))
        await future

    @property
    def next_due(self) -> float | None:
        """When the first sleeper wakes up, in seconds since 1970; None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass: wake the sleepers in order, each at its time, and let them run before time goes on."""
        target = self._now + seconds
        await self.settle()
        while (due := self.next_due) is not None and due <= target:
            self._now = max(self._now, due)
            heappop(self._sleepers)[2].set_result(None)
            await self.settle()
        self._now = target
        await self.settle()

    async def jump(self, seconds: float) -> None:
        """Let *seconds* pass at once: sleepers wake up at the end of it, however often they would have meanwhile."""
        await self.settle()
        self._now += seconds
        while (due := self.next_due) is not None and due <= self._now:
            heappop(self._sleepers)[2].set_result(None)
        await self.settle()

    async def settle(self) -> None:
        """Let all tasks that can run do so, without any time passing."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
