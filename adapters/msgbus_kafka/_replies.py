"""Answers to requests: one topic per service, of which each process reads a partition and picks what is its own.

The record's key is the process's own name, so that a partition can serve several. Nobody commits anything: an answer
that nobody waits for any more is of no use, and the topic forgets it after some minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, TopicPartition

from msgbus.adapter import Outcome, Received, Subscription
from msgbus.errors import BrokerError, ClosedError, LeaseLost, SettleError, Unroutable
from msgbus_kafka._clients import start_consumer, stop_consumer
from msgbus_kafka._cluster import LATEST, Cluster
from msgbus_kafka._errors import broker_error
from msgbus_kafka._fetch import Fetch, consumer_record
from msgbus_kafka._producer import Record
from msgbus_kafka._wire import from_headers

__all__ = ["ReplySubscription", "reply_record"]

_log = logging.getLogger("msgbus.kafka")
_POLL_MS = 1000
_RETRY = 0.5
_LARGEST = 1024 * 1024


def reply_record(address: str, body: bytes, headers: Mapping[str, str]) -> Record:
    """Return the record of an answer to *address*; raises `Unroutable` when it is not one of ours."""
    topic, _, rest = address.partition("/")
    partition, slash, name = rest.partition("/")
    if not slash or not partition.isdecimal():
        raise Unroutable(f"{address!r} is not a Kafka reply address: topic/partition/name")
    return Record(topic, body, headers, name.encode(), int(partition))


class ReplySubscription(Subscription):
    """The answers for one name.

    Args:
        topic: Where the service's answers are.
        partitions: How many partitions it has.
        name: Whose answers to pick.
        connection: The arguments every aiokafka client takes.
        cluster: Where to ask for offsets.
        closed: Called when it is closed.
    """

    def __init__(
        self,
        topic: str,
        partitions: int,
        name: str,
        connection: Mapping[str, Any],
        *,
        cluster: Cluster,
        closed: Callable[[ReplySubscription], None],
    ) -> None:
        self._tp = TopicPartition(topic, crc32(name.encode()) % partitions)
        self.address = f"{topic}/{self._tp.partition}/{name}"
        self._name = name.encode()
        self._connection = dict(connection)
        self._cluster = cluster
        self._on_closed = closed
        self._next = 0
        self._consumer: Any = None
        self._task: asyncio.Task[None] | None = None
        self._inbox: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._failure: BrokerError | None = None
        self._closed = False

    async def open(self) -> None:
        """Begin at the end of the topic as it is now; raises `BrokerError`."""
        self._next = (await self._cluster.offsets([self._tp], LATEST))[self._tp]
        self._consumer = await self._connect()
        self._task = asyncio.create_task(self._run())

    async def _connect(self) -> Any:
        consumer = AIOKafkaConsumer(
            **self._connection, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=500
        )
        await start_consumer(consumer, "starting a consumer of answers")
        consumer.assign([self._tp])
        consumer.seek(self._tp, self._next)
        return consumer

    async def _run(self) -> None:
        while not self._closed:
            try:
                if self._consumer is None:
                    self._consumer = await self._connect()
                await self._poll(Fetch(self._consumer, self._cluster, _LARGEST, partial(consumer_record, self._tp)))
            except kafka.ConsumerStoppedError:
                return
            except Exception as exc:  # noqa: BLE001 - whatever broke the consumer, a new one takes its place
                self._failure = broker_error(exc, "consuming answers")
                _log.warning("%s; connecting anew", self._failure)
                self._arrived.set()
                consumer, self._consumer = self._consumer, None
                if consumer is not None:
                    await stop_consumer(consumer)
                await asyncio.sleep(_RETRY)

    async def _poll(self, fetch: Fetch) -> None:
        while not self._closed:
            for record in (await fetch.many(_POLL_MS)).get(self._tp, ()):
                self._next = record.offset + 1
                if record.key == self._name:
                    self._take_in(record)
            fetch.rest()  # there is nothing else to ask the broker for meanwhile

    def _take_in(self, record: Any) -> None:
        headers = from_headers(record.headers)
        self._inbox.append(
            Received(record.value or b"", headers, channel=self.address, time=record.timestamp / 1000, raw=record)
        )
        self._arrived.set()

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """Return answers; see `Subscription.receive`."""
        if not self._inbox and not self._closed and self._failure is None:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        if self._closed:
            raise ClosedError("the subscription is closed")
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure
        return [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """Do nothing: an answer is handed out once."""
        return [LeaseLost("the subscription is closed") if self._closed else None for _ in outcomes]

    async def aclose(self) -> None:
        """Stop reading."""
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        try:
            if self._consumer is not None:
                await stop_consumer(self._consumer)
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
        finally:
            self._on_closed(self)
