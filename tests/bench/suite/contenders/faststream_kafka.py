"""FastStream on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

import faststream.kafka as fs
from faststream import AckPolicy

from tests.bench.suite.contender import AT_MOST_ONCE, Publisher
from tests.bench.suite.contenders.faststream import FastStreamBase, Publishing
from tests.bench.suite.contenders.kafka_raw import PARTITIONS, PRODUCER, make_topic, servers
from tests.bench.suite.load import Handler

__all__ = ["FastStream", "FastStreamBatches", "FastStreamDefaults"]

_BATCH = 400  # fits the producer's batch size with bodies of 1 KiB
_GROUP: dict[str, Any] = {"group_id": "bench", "auto_offset_reset": "earliest", "fetch_max_wait_ms": 100}


class FastStream(FastStreamBase):
    """A handler that takes one message, acked after it."""

    name = "FastStream, message by message"
    settings = "NACK_ON_ERROR (a commit per message), 6 workers for handlers that wait, no log, no types; 256 at once"
    modules: ClassVar[tuple[str, ...]] = ("faststream.kafka",)
    distributions: ClassVar[tuple[str, ...]] = ("faststream", "aiokafka")
    can = frozenset({"waits", "processes", "retries"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.KafkaBroker(servers(self.url), logger=None, apply_types=False, **PRODUCER)

    async def create(self, queue: str, *, keyed: bool = False) -> None:
        await make_topic(self.url, queue)

    @contextlib.asynccontextmanager
    async def publisher(self, queue: str, *, keys: int = 0) -> AsyncIterator[Publisher]:
        yield Publishing(lambda body: self._broker.publish(body, queue))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        options = {**_GROUP, "ack_policy": AckPolicy.NACK_ON_ERROR}
        if handler.waits:
            options["max_workers"] = PARTITIONS
        broker.subscriber(queue, **options)(handle)


class _Batches(Publishing):
    def __init__(self, broker: Any, queue: str) -> None:
        super().__init__(lambda body: broker.publish(body, queue))
        self._broker, self._queue = broker, queue

    async def many(self, bodies: Sequence[bytes]) -> None:
        await asyncio.gather(*(self._fill(partition, bodies) for partition in range(PARTITIONS)))

    async def _fill(self, partition: int, bodies: Sequence[bytes]) -> None:
        """Publish every so-manieth batch, to one partition: all of them at once."""
        for first in range(partition * _BATCH, len(bodies), PARTITIONS * _BATCH):
            await self._broker.publish_batch(*bodies[first : first + _BATCH], topic=self._queue, partition=partition)


class FastStreamBatches(FastStream):
    """A handler that takes whole batches: not the same work, but its highest figure."""

    name = "FastStream, batch handlers"
    settings = "as above, with publish_batch(400) on 6 partitions at once, and handlers that take lists of up to 500"
    can = frozenset({"processes"})

    @contextlib.asynccontextmanager
    async def publisher(self, queue: str, *, keys: int = 0) -> AsyncIterator[Publisher]:
        yield _Batches(self._broker, queue)

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(batch: list[bytes]) -> None:
            for body in batch:
                await handler(body)

        options = {**_GROUP, "ack_policy": AckPolicy.NACK_ON_ERROR, "batch": True, "max_records": 500}
        broker.subscriber(queue, **options)(handle)


class FastStreamDefaults(FastStream):
    """As it comes, but for the group and where it begins: without them it would see none of the messages."""

    name = "FastStream, its defaults"
    guarantee = AT_MOST_ONCE
    settings = "acks=1, committed before the handler; log lines to /dev/null"
    can = frozenset({"processes"})

    def _make(self, prefetch: int = 0) -> Any:
        return fs.KafkaBroker(servers(self.url))

    def _subscribe(self, broker: Any, queue: str, handler: Handler, concurrency: int) -> None:
        async def handle(body: bytes) -> None:
            await handler(body)

        broker.subscriber(queue, group_id="bench", auto_offset_reset="earliest")(handle)
