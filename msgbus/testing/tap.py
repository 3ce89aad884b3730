"""A subscription as checks use it: takes with deadlines, settles and insists that it worked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgbus.adapter import (
    DEAD,
    ID,
    Ack,
    Adapter,
    DeadLetter,
    Nack,
    Outcome,
    Received,
    Source,
    SubscribeOptions,
    Subscription,
)
from msgbus.errors import BrokerUnavailable, SettleError

if TYPE_CHECKING:
    from msgbus.testing.case import Case

__all__ = ["Tap"]

_WAIT = 0.5
"""Seconds of one receive call: long enough not to spin, short enough to notice a deadline."""


class Tap:
    """One subscription of a check."""

    subscription: Subscription

    def __init__(self, case: Case, adapter: Adapter, source: Source, *, prefetch: int, lease: float) -> None:
        self.source = source
        self._case = case
        self._adapter = adapter
        self._options = SubscribeOptions(prefetch=prefetch, lease=lease)

    async def open(self) -> None:
        """Subscribe."""
        self.subscription = await self._adapter.subscribe(self.source, self._options)

    async def aclose(self) -> None:
        """Close the subscription."""
        await self.subscription.aclose()

    async def take(self, count: int = 1, *, within: float | None = None) -> list[Received]:
        """Return exactly *count* messages; fail when they do not come in time.

        What had been acked before counts as a duplicate and is acked again, not returned.
        """
        deadline = self._case.deadline(within)
        got: list[Received] = []
        while len(got) < count:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise AssertionError(f"{self.source} gave {len(got)} of {count} messages: {bodies(got[-5:])}")
            got += await self._receive(count - len(got), min(left, _WAIT))
        return got

    async def take_all(self, *, idle: float | None = None) -> list[Received]:
        """Return what comes until nothing has come for *idle* seconds."""
        wait = max(3 * self._case.tick, _WAIT) if idle is None else idle
        got: list[Received] = []
        while batch := await self._receive(100, wait):
            got += batch
        return got

    async def expect_nothing(self, ticks: float = 1.5) -> None:
        """Fail if a message comes within some ticks."""
        got = await self._receive(10, ticks * self._case.tick)
        assert not got, f"{self.source} gave {len(got)} messages that should not be there: {bodies(got)}"

    async def drain(self, count: int, *, within: float | None = None) -> list[Received]:
        """Take and ack *count* messages, a few at a time."""
        deadline = self._case.deadline(within)
        got: list[Received] = []
        while len(got) < count:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise AssertionError(f"{self.source} gave {len(got)} of {count} messages")
            batch = await self._receive(min(self._options.prefetch, count - len(got)), min(left, _WAIT))
            await self.ack(*batch)
            got += batch
        return got

    async def ack(self, *received: Received) -> None:
        """Ack messages; each must succeed."""
        await self._settle([Ack(message) for message in received])
        self._case.acked(self.source, [message.headers.get(ID, "") for message in received])

    async def nack(self, *received: Received, delay: float = 0.0, counted: bool = True) -> None:
        """Give messages back; each must succeed."""
        await self._settle([Nack(m, delay, counted, dict(m.headers)) for m in received])

    async def bury(self, *received: Received, park: bool = False) -> None:
        """Dead-letter messages; each must succeed."""
        report = '{"reason": "failed", "detail": "buried by the kit"}'
        await self._settle([DeadLetter(m, {**m.headers, DEAD: report}, park) for m in received])

    async def settle(self, outcomes: Sequence[Outcome]) -> list[SettleError | None]:
        """Settle in the adapter's batches; return each one's result."""
        size = self._adapter.capabilities.max_settle
        results: list[SettleError | None] = []
        for start in range(0, len(outcomes), size):
            batch = outcomes[start : start + size]
            part = await self.subscription.settle(batch)
            assert len(part) == len(batch), f"{len(part)} results for {len(batch)} outcomes"
            results += part
        return results

    async def _settle(self, outcomes: Sequence[Outcome]) -> None:
        failed = [error for error in await self.settle(outcomes) if error is not None]
        assert not failed, f"{len(failed)} of {len(outcomes)} outcomes were refused: {failed[0]!r}"

    async def _receive(self, limit: int, wait: float) -> list[Received]:
        try:
            got = await self.subscription.receive(limit, wait)
        except BrokerUnavailable:
            await asyncio.sleep(0.1)  # as the core does: pause, then ask again
            return []
        assert len(got) <= limit, f"receive({limit}) gave {len(got)} messages"
        again = [m for m in got if self._case.is_duplicate(self.source, m.headers.get(ID, ""))]
        if again:
            await self.settle([Ack(message) for message in again])
        return [message for message in got if message not in again]


def bodies(received: Sequence[Received]) -> list[bytes]:
    """Return the bodies of messages, the beginning of long ones, for error texts and comparisons of short ones."""
    return [message.body[:60] for message in received]
