"""nats-py itself: what is left to a framework."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import ClassVar, Self

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingCame
from nats.js import JetStreamContext, api

from tests.bench.suite.contender import Contender, Kind, Place, Publisher, Request
from tests.bench.suite.load import Handler

__all__ = ["NatsPy", "make_stream"]

FETCH = 256


async def make_stream(client: Client, name: str) -> None:
    """Make a stream as a queue has it."""
    config = api.StreamConfig(name=name, subjects=[name], retention=api.RetentionPolicy.WORK_QUEUE)
    await client.jetstream().add_stream(config)


class _Publisher(Publisher):
    def __init__(self, jetstream: JetStreamContext, queue: str) -> None:
        self._jetstream = jetstream
        self._queue = queue

    async def one(self, body: bytes) -> None:
        await self._jetstream.publish(self._queue, body)

    async def many(self, bodies: Sequence[bytes]) -> None:
        futures = [await self._jetstream.publish_async(self._queue, body, wait_stall=30) for body in bodies]
        await asyncio.gather(*futures)


class NatsPy(Contender):
    """`publish_async` and a loop of `fetch`."""

    name = "nats-py"
    kind = Kind.RAW
    settings = "publish_async; fetch(256), handled and acked one by one; requests by core NATS"
    modules: ClassVar[tuple[str, ...]] = ("nats", "nats.js")
    distributions: ClassVar[tuple[str, ...]] = ("nats-py",)
    can = frozenset({"processes", "requests", "tasks", "batches"})

    async def __aenter__(self) -> Self:
        self._client = await nats.connect(self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def create(self, *places: Place) -> None:
        for place in places:
            await make_stream(self._client, place.name)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield _Publisher(self._client.jetstream(), place.name)

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        client = await nats.connect(self.url)
        config = api.ConsumerConfig(max_ack_pending=-1)
        name = places[0].name
        subscription = await client.jetstream().pull_subscribe(name, "bench", stream=name, config=config)

        async def work() -> None:
            while True:
                with contextlib.suppress(NothingCame):
                    messages = await subscription.fetch(FETCH, timeout=1)
                    if handler.batch:
                        await handler.many([message.data for message in messages])
                    for message in messages:
                        if not handler.batch:
                            await handler(message.data)
                        await message.ack()

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.flush()
            await client.close()

    @contextlib.asynccontextmanager
    async def requester(self, name: str) -> AsyncIterator[Request]:
        server = await nats.connect(self.url)

        async def answer(message: Msg) -> None:
            await message.respond(message.data)

        async def request(body: bytes) -> bytes:
            return (await self._client.request(name, body, timeout=30)).data

        await server.subscribe(name, cb=answer)
        await server.flush()
        await server.flush()  # its PING goes past its own buffer: the first one may be there before the subscription
        try:
            yield request
        finally:
            await server.close()
