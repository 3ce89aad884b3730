"""FastStream on NATS JetStream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import faststream.nats as fs
import nats
from faststream import AckPolicy
from nats.js import api

from tests.bench.suite.contender import AT_MOST_ONCE, Publisher, Request
from tests.bench.suite.contenders.faststream import FastStreamBase, Publishing
from tests.bench.suite.contenders.nats_py import make_stream
from tests.bench.suite.load import Handler

__all__ = ["FastStream", "FastStreamDefaults"]


class FastStream(FastStreamBase):
    """A push consumer, its quickest way to handle message by message; workers where handlers wait."""

    settings = "NACK_ON_ERROR, push consumer (64 workers for handlers that wait), no log or types; 256 at once"
    modules: ClassVar[tuple[str, ...]] = ("faststream.nats",)
    distributions: ClassVar[tuple[str, ...]] = ("faststream", "nats-py")
    can = frozenset({"waits", "processes", "requests", "retries", "subscriptions"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.NatsBroker(self.url, logger=None, apply_types=False)

    async def create(self, queue: str, *, keyed: bool = False) -> None:
        client = await nats.connect(self.url)
        await make_stream(client, queue)
        await client.close()

    @contextlib.asynccontextmanager
    async def publisher(self, queue: str, *, keys: int = 0) -> AsyncIterator[Publisher]:
        yield Publishing(lambda body: self._broker.publish(body, queue, stream=queue, timeout=30))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        options: dict[str, Any] = {
            "config": api.ConsumerConfig(max_ack_pending=-1),
            "ack_policy": AckPolicy.NACK_ON_ERROR,
        }
        if handler.waits:
            options["max_workers"] = concurrency
        stream = fs.JStream(queue, declare=False)
        broker.subscriber(queue, stream=stream, durable="bench", **options)(handle)

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
    guarantee = AT_MOST_ONCE
    settings = "what fails is dropped; one message at a time, log lines to /dev/null"
    can = frozenset({"processes"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.NatsBroker(self.url)

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        broker.subscriber(queue, stream=fs.JStream(queue, declare=False), durable="bench")(handle)
