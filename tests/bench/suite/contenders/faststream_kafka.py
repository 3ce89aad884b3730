"""FastStream on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

import faststream.kafka as fs
from faststream import AckPolicy

from tests.bench.suite.contender import AT_MOST_ONCE, Place, Publisher
from tests.bench.suite.contenders.faststream import FastStreamBase, Publishing, batches
from tests.bench.suite.contenders.kafka_raw import PARTITIONS, PRODUCER, make_topics, servers
from tests.bench.suite.load import Handler

__all__ = ["FastStream", "FastStreamDefaults"]

_BATCH = 400
_GROUP: dict[str, Any] = {"group_id": "bench", "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}


class FastStream(FastStreamBase):
    """Whole batches where it can: each `publish_batch` goes to one partition."""

    settings = (
        "publish_batch(400) to 6 partitions at once, or publish from 256 tasks; NACK_ON_ERROR (a commit per call of a "
        "handler), 6 workers for handlers that wait, up to 500 for handlers of batches; no log, no types"
    )
    modules: ClassVar[tuple[str, ...]] = ("faststream.kafka",)
    distributions: ClassVar[tuple[str, ...]] = ("faststream", "aiokafka")
    can = frozenset({"waits", "tasks", "batches", "processes", "backlogs", "retries"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.KafkaBroker(servers(self.url), logger=None, apply_types=False, **PRODUCER)

    async def create(self, *places: Place) -> None:
        await make_topics(self.url, places)

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield _Batches(self._broker, place.name)

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        options = {**_GROUP, "ack_policy": AckPolicy.NACK_ON_ERROR}
        if handler.batch:
            broker.subscriber(queue, batch=True, max_records=handler.batch, **options)(batches(handler))
            return

        async def handle(body: bytes) -> None:
            await handler(body)

        if handler.waits:
            options["max_workers"] = PARTITIONS
        broker.subscriber(queue, **options)(handle)


class _Batches(Publishing):
    def __init__(self, broker: Any, queue: str) -> None:
        super().__init__(lambda body: broker.publish(body, queue))
        self._broker, self._queue = broker, queue

    async def many(self, bodies: Sequence[bytes]) -> None:
        # What fits the producer's batch size.
        size = max(1, min(_BATCH, PRODUCER["max_batch_size"] // (len(bodies[0]) + 100)))
        await asyncio.gather(*(self._fill(partition, size, bodies) for partition in range(PARTITIONS)))

    async def _fill(self, partition: int, size: int, bodies: Sequence[bytes]) -> None:
        """Publish every so-manieth batch, to one partition: all of them at once."""
        for first in range(partition * size, len(bodies), PARTITIONS * size):
            await self._broker.publish_batch(*bodies[first : first + size], topic=self._queue, partition=partition)


class FastStreamDefaults(FastStream):
    """As it comes, but for the group and where it begins: without them it would see none of the messages."""

    name = "FastStream, its defaults"
    full = False
    guarantee = AT_MOST_ONCE
    settings = "acks=1, committed before the handler; log lines to /dev/null"
    can = frozenset({"processes"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.KafkaBroker(servers(self.url))

    @contextlib.asynccontextmanager
    async def publisher(self, place: Place) -> AsyncIterator[Publisher]:
        yield Publishing(lambda body: self._broker.publish(body, place.name))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        broker.subscriber(queue, group_id="bench", auto_offset_reset="earliest")(handle)
