"""msgbus itself, the same on every broker."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Self

from msgbus import Bus, Queue, RequestReply, Retry
from tests.bench.suite.contender import Contender, Kind, Place, Publisher, Request
from tests.bench.suite.load import Handler, number_of

__all__ = ["NATS", "SQS", "Kafka", "Memory", "RabbitMQ", "SQLite"]

PREFETCH = 250
_SUBSCRIPTIONS = tuple(f"{number} subscriptions" for number in (1, 10, 100, 500))


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
    settings = (
        "send_many; prefetch 250 (less in short runs), ten batches for handlers of batches, which take what there is; "
        "retries and dead letters on"
    )
    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus")
    distributions: ClassVar[tuple[str, ...]] = ("msgbus",)
    can = frozenset(
        {"waits", "tasks", "batches", "processes", "backlogs", "requests", "keys", "retries", *_SUBSCRIPTIONS}
    )

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._bus = Bus(url)

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bus.__aexit__()

    def _queue(self, place: Place) -> Queue[bytes]:
        if place.keys:
            return Queue(place.name, bytes, native=self._native(place), key=lambda b: str(number_of(b) % place.keys))
        return Queue(place.name, bytes, native=self._native(place))

    def _native(self, place: Place) -> dict[str, Any]:
        """Return what the broker wants to know of a queue."""
        return {}

    async def create(self, *places: Place) -> None:
        bus = Bus(self.url)
        for place in places:
            bus.on(self._queue(place))(_nothing)
        async with bus:
            pass

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield _Publisher(self._bus, self._queue(place))

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        # What is held when the first message is handled must not be most of what is measured.
        most = 10 * handler.batch or PREFETCH
        bus = Bus(self.url, prefetch=max(min(most, handler.tally.count // 10), concurrency, 2 * handler.batch))
        retry = Retry(attempts=5, base=0.01, cap=0.01)

        async def handle(body: bytes) -> None:
            await handler(body)

        async def handle_batch(batch: list[bytes]) -> None:
            await handler.many(batch)

        for place in places:
            if handler.batch:
                bus.on(self._queue(place), batch=handler.batch, batch_wait=0, concurrency=1, retry=retry)(handle_batch)
            else:
                bus.on(self._queue(place), concurrency=concurrency, retry=retry)(handle)
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
    can = Msgbus.can - {"processes"} | {"embedded"}


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
    can = Msgbus.can - {*_SUBSCRIPTIONS[3:]} | {"partitions"}  # 500 consumers take minutes to join
    buffer = 6000  # a fetch brings up to a MiB of each partition

    def _native(self, place: Place) -> dict[str, Any]:
        return {"partitions": place.partitions or 6}


class SQS(Msgbus):
    """Standard queues, FIFO ones where there are keys."""

    settings = "as elsewhere, with polls of one second"
    modules: ClassVar[tuple[str, ...]] = ("msgbus", "msgbus._bus", "msgbus_aws")
    distributions: ClassVar[tuple[str, ...]] = ("msgbus", "boto3")
    can = Msgbus.can - {"backlogs", *_SUBSCRIPTIONS[2:]}  # an emulator answers a hundred polls one by one

    def __init__(self, url: str) -> None:
        super().__init__(f"{url}&wait=1&sns=false")


async def _nothing(_: bytes) -> None: ...
