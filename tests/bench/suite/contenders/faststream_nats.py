"""FastStream on NATS JetStream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import faststream.nats as fs
import nats
from faststream import AckPolicy
from nats.js import api

from tests.bench.suite.contender import AT_MOST_ONCE, Place, Publisher, Request
from tests.bench.suite.contenders.faststream import FastStreamBase, Publishing, batches
from tests.bench.suite.contenders.nats_py import FETCH, make_stream
from tests.bench.suite.load import Handler

__all__ = ["FastStream", "FastStreamDefaults"]


class FastStream(FastStreamBase):
    """A push consumer, its quickest way to handle message by message; workers where handlers wait."""

    settings = (
        "NACK_ON_ERROR, push consumer (64 workers for handlers that wait; pull of 256 for handlers of batches), "
        "no log or types; 256 at once"
    )
    modules: ClassVar[tuple[str, ...]] = ("faststream.nats",)
    distributions: ClassVar[tuple[str, ...]] = ("faststream", "nats-py")
    can = frozenset({"waits", "tasks", "batches", "processes", "backlogs", "requests", "retries"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.NatsBroker(self.url, logger=None, apply_types=False)

    async def create(self, *places: Place) -> None:
        client = await nats.connect(self.url)
        for place in places:
            await make_stream(client, place.name)
        await client.close()

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        name = place.name
        yield Publishing(lambda body: self._broker.publish(body, name, stream=name, timeout=30))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        options: dict[str, Any] = {
            "stream": fs.JStream(queue, declare=False),
            "durable": "bench",
            "ack_policy": AckPolicy.NACK_ON_ERROR,
        }
        if handler.batch:
            pull = fs.PullSub(batch_size=FETCH, batch=True, timeout=0.2)
            broker.subscriber(queue, pull_sub=pull, **options)(batches(handler))
            return

        async def handle(body: bytes) -> None:
            await handler(body)

        if handler.waits:
            options["max_workers"] = concurrency
        else:
            options["config"] = api.ConsumerConfig(max_ack_pending=-1)
        broker.subscriber(queue, **options)(handle)

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
    settings = "what fails is dropped; one message at a time, log lines to /dev/null"
    can = frozenset({"processes"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.NatsBroker(self.url)

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        broker.subscriber(queue, stream=fs.JStream(queue, declare=False), durable="bench")(handle)
