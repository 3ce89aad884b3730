"""Contenders that break their promise, for the tests of the suite."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from tests.bench.suite.contender import AT_LEAST_ONCE, Place, Publisher
from tests.bench.suite.contenders.embedded import AsyncioQueue
from tests.bench.suite.load import Handler, number_of

__all__ = ["Loses", "Partial", "Repeats"]


class Loses(AsyncioQueue):
    """Forgets one message."""

    name = "loses"
    guarantee = AT_LEAST_ONCE

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        async with super().publisher(place) as publisher:
            yield _Forgetful(publisher)


class _Forgetful(Publisher):
    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def one(self, body: bytes) -> None:
        if number_of(body) != 7:
            await self._publisher.one(body)

    async def many(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            await self.one(body)


class Repeats(AsyncioQueue):
    """Handles the first message twice."""

    name = "repeats"
    guarantee = AT_LEAST_ONCE

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        queue = self._queues[places[0].name]
        queue._queue.appendleft(queue._queue[0])  # type: ignore[attr-defined]
        async with super().consumer(places, handler, concurrency=concurrency):
            yield


class Partial(AsyncioQueue):
    """Takes part in the headlines only."""

    name = "partial"
    full = False
