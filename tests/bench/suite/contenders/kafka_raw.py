"""aiokafka itself: what is left to a framework."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.bench.suite.contender import Contender, Kind, Place, Publisher
from tests.bench.suite.load import Handler

__all__ = ["PRODUCER", "AIOKafka", "make_topics", "servers"]

PARTITIONS = 6
PRODUCER: dict[str, Any] = {"acks": "all", "enable_idempotence": True, "linger_ms": 5, "max_batch_size": 512 * 1024}
_CONSUMER: dict[str, Any] = {
    "group_id": "bench",
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "fetch_max_wait_ms": 100,
}


def servers(url: str) -> str:
    """Return what the client wants to hear of a URL."""
    return url.partition("://")[2].partition("?")[0]


async def make_topics(url: str, places: Sequence[Place]) -> None:
    """Make topics with as many partitions as everybody's."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers(url))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(place.name, place.partitions or PARTITIONS, 1) for place in places])
    finally:
        await admin.close()


class _Publisher(Publisher):
    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def one(self, body: bytes) -> None:
        await self._producer.send_and_wait(self._topic, body)

    async def many(self, bodies: Sequence[bytes]) -> None:
        futures = [await self._producer.send(self._topic, body) for body in bodies]
        for future in futures:
            await future


class AIOKafka(Contender):
    """`send` without waiting in between, and a `getmany` loop that commits after each batch."""

    name = "aiokafka"
    kind = Kind.RAW
    settings = "acks=all, idempotent, linger 5 ms, batches of 512 KiB; getmany(500), handled one by one, then committed"
    modules: ClassVar[tuple[str, ...]] = ("aiokafka",)
    distributions: ClassVar[tuple[str, ...]] = ("aiokafka",)
    can = frozenset({"processes", "tasks", "batches"})
    buffer = 6000  # a fetch brings up to a MiB of each partition

    async def create(self, *places: Place) -> None:
        await make_topics(self.url, places)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        producer = AIOKafkaProducer(bootstrap_servers=servers(self.url), **PRODUCER)
        await producer.start()
        try:
            yield _Publisher(producer, place.name)
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def consumer(self, places: Sequence[Place], handler: Handler, *, concurrency: int = 1) -> AsyncIterator[None]:
        consumer = AIOKafkaConsumer(places[0].name, bootstrap_servers=servers(self.url), **_CONSUMER)
        await consumer.start()
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                batch = await consumer.getmany(timeout_ms=200, max_records=500)
                if handler.batch:
                    await handler.many([record.value for records in batch.values() for record in records])
                else:
                    for records in batch.values():
                        for record in records:
                            await handler(record.value)
                if batch:
                    await consumer.commit()

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            stop.set()
            await task
            await consumer.stop()
