"""msgbus itself, the same on every broker."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Self

from msgbus import Bus, Queue, RequestReply, Retry
from tests.bench.suite.contender import Contender, Kind, Publisher, Request
from tests.bench.suite.load import Handler, number_of

__all__ = ["NATS", "Kafka", "Memory", "RabbitMQ", "SQLite"]

PREFETCH = 1000


class _Publisher(Publisher):
    def __init__(self, bus: Bus, queue: Queue[bytes]) -> None:
        self._bus = bus
        self._queue = queue

    async def one(self, body: bytes) -> None:
        await self._bus.send(self._queue, body)

    async def many(self, bodies: Sequence[bytes]) -> None:
        await self._bus.send_many(self._queue, bodies)


class Msgbus(Contender):
    """``send_many`` where there are many; otherwise as in the tutorial, with a longer prefetch."""

    name = "msgbus"
    kind = Kind.OURS
    settings = "send_many; prefetch 1,000, retries and dead letters on"
    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus")
    distributions: ClassVar[tuple[str, ...]] = ("msgbus",)
    can = frozenset({"waits", "processes", "requests", "keys", "retries", "subscriptions"})
    native: ClassVar[dict[str, Any]] = {}

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._bus = Bus(url)

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bus.__aexit__()

    def _queue(self, name: str, keys: int = 0) -> Queue[bytes]:
        if keys:
            return Queue(name, bytes, native=self.native, key=lambda body: str(number_of(body) % keys))
        return Queue(name, bytes, native=self.native)

    async def create(self, queue: str, *, keyed: bool = False) -> None:
        bus = Bus(self.url)
        bus.on(self._queue(queue, int(keyed)))(_nothing)
        async with bus:
            pass

    @contextlib.asynccontextmanager
    async def publisher(self, queue: str, *, keys: int = 0) -> AsyncIterator[Publisher]:
        yield _Publisher(self._bus, self._queue(queue, keys))

    @contextlib.asynccontextmanager
    async def consumer(
        self, queues: Sequence[str], handler: Handler, *, concurrency: int = 1, keys: int = 0
    ) -> AsyncIterator[None]:
        bus = Bus(self.url, prefetch=PREFETCH)
        retry = Retry(attempts=5, base=0.01, cap=0.01)

        async def handle(body: bytes) -> None:
            await handler(body)

        for queue in queues:
            bus.on(self._queue(queue, keys), concurrency=concurrency, retry=retry)(handle)
        async with bus:
            await bus.start()
            yield

    @contextlib.asynccontextmanager
    async def requester(self, name: str) -> AsyncIterator[Request]:
        echo = RequestReply(name, bytes, bytes)
        server = Bus(self.url, prefetch=PREFETCH)

        @server.on(echo, concurrency=64)
        async def answer(body: bytes) -> bytes:
            return body

        async def request(body: bytes) -> bytes:
            return await self._bus.request(echo, body, timeout=30)

        async with server:
            await server.start()
            yield request


class Memory(Msgbus):
    """Within one process."""

    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus", "msgbus_memory")
    can = Msgbus.can - {"processes"}


class SQLite(Msgbus):
    """On a file."""

    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus", "msgbus_sqlite")


class RabbitMQ(Msgbus):
    """Quorum queues."""

    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus", "msgbus_rabbitmq")
    distributions: ClassVar[tuple[str, ...]] = ("msgbus", "kombu", "amqp")


class NATS(Msgbus):
    """JetStream, file storage."""

    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus", "msgbus_nats")
    distributions: ClassVar[tuple[str, ...]] = ("msgbus", "nats-py")


class Kafka(Msgbus):
    """Six partitions."""

    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus", "msgbus_kafka")
    distributions: ClassVar[tuple[str, ...]] = ("msgbus", "aiokafka")
    native: ClassVar[dict[str, Any]] = {"partitions": 6}


async def _nothing(_: bytes) -> None: ...
