"""FastStream on RabbitMQ."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import faststream.rabbit as fs
from faststream import AckPolicy

from tests.bench.suite.contender import AT_MOST_ONCE, Place, Publisher, Request
from tests.bench.suite.contenders.faststream import FastStreamBase, Publishing
from tests.bench.suite.load import Handler

__all__ = ["FastStream", "FastStreamDefaults"]

PREFETCH = 250


class FastStream(FastStreamBase):
    """At its best for at-least-once."""

    settings = "NACK_ON_ERROR, persist, prefetch 250 (64 for handlers that wait), no log or types; 256 at once"
    modules: ClassVar[tuple[str, ...]] = ("faststream.rabbit",)
    distributions: ClassVar[tuple[str, ...]] = ("faststream", "aio-pika")
    can = frozenset({"waits", "tasks", "processes", "backlogs", "requests", "retries"})

    def _make(self, prefetch: int = 0) -> Any:
        channel = fs.Channel(prefetch_count=prefetch or PREFETCH)
        return fs.RabbitBroker(self.url, default_channel=channel, logger=None, apply_types=False)

    def _queue(self, name: str) -> Any:
        return fs.RabbitQueue(name, queue_type=fs.QueueType.QUORUM, durable=True)

    async def create(self, *places: Place) -> None:
        for place in places:
            await self._broker.declare_queue(self._queue(place.name))

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        target = self._queue(place.name)
        yield Publishing(lambda body: self._broker.publish(body, target, persist=True))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        broker.subscriber(self._queue(queue), ack_policy=AckPolicy.NACK_ON_ERROR)(handle)

    @contextlib.asynccontextmanager
    async def requester(self, name: str) -> AsyncIterator[Request]:
        async def answer(body: bytes) -> bytes:
            return body

        async def request(body: bytes) -> bytes:
            reply: bytes = (await self._broker.request(body, name, timeout=30)).body
            return reply

        self._broker.subscriber(name)(answer)
        await self._broker.start()
        yield request


class FastStreamDefaults(FastStream):
    """As it comes."""

    name = "FastStream, its defaults"
    full = False
    guarantee = AT_MOST_ONCE
    settings = "messages not persisted, what fails is dropped; no prefetch limit, log lines to /dev/null"
    can = frozenset({"waits", "processes"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.RabbitBroker(self.url)

    def _queue(self, name: str) -> Any:
        return fs.RabbitQueue(name)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield Publishing(lambda body: self._broker.publish(body, place.name))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        broker.subscriber(queue)(handle)
