"""Publishing whole batches: one record batch per partition and call, each message's own result.

The core gathers what is published concurrently, so batches are built here directly (`create_batch`, `send_batch`)
instead of message by message: a fifth of the cost, no linger, and a partition's batches leave in the order of the
calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2

from msgbus.errors import BrokerError, BrokerUnavailable, PublishError, PublishTimeout, Unroutable
from msgbus_kafka._clients import close_client, mind
from msgbus_kafka._errors import NotNow, TopicGone, broker_error, ends_producer, publish_error
from msgbus_kafka._options import Options
from msgbus_kafka._wire import to_headers

__all__ = ["Producer", "Record"]

_log = logging.getLogger("msgbus.kafka")
_BATCH = 512 * 1024
"""The largest record batch in bytes. Larger would meet the broker's limit of 1 MiB, smaller waits for more replies."""
_REQUEST_TIMEOUT_MS = 15_000
_STOP_TIMEOUT = 5.0
_DOUBT = 3.0
"""Seconds without an answer after which it is asked whether the topic still exists."""


class Record:
    """One record on its way out, and what became of it.

    Its headers become bytes as late as possible: thousands of records wait at once, and what is small and many costs
    the garbage collector more than the work itself.
    """

    __slots__ = ("error", "headers", "key", "partition", "topic", "value")

    def __init__(
        self,
        topic: str,
        value: bytes | None,
        headers: Mapping[str, str],
        key: bytes | None = None,
        partition: int | None = None,
    ) -> None:
        self.topic = topic
        self.value = value
        self.headers = headers
        self.key = key
        self.partition = partition
        self.error: PublishError | None = None

    @property
    def size(self) -> int:
        """The body's size in bytes."""
        return len(self.value or b"")


class Producer:
    """The adapter's only writer, an idempotent one.

    Args:
        connection: The arguments every aiokafka client takes.
        options: The URL's options.
        exists: Tells whether a topic exists, creating nothing.
        largest: Returns the largest record batch a topic takes, in bytes.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        options: Options,
        *,
        exists: Callable[[str], Awaitable[bool]],
        largest: Callable[[str], Awaitable[int]],
    ) -> None:
        self._connection = dict(connection)
        self._options = options
        self._exists = exists
        self._largest = largest
        self._producer: Any = None
        self._renewing = asyncio.Lock()
        self._locks: defaultdict[TopicPartition, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turn: defaultdict[str, int] = defaultdict(int)

    @property
    def raw(self) -> Any:
        """The client library's producer."""
        return self._producer

    async def open(self) -> None:
        """Connect; raises `BrokerError`."""
        self._producer = await self._start()

    async def aclose(self) -> None:
        """Wait a little for what is under way, then disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def send(self, records: Sequence[Record]) -> None:
        """Send *records* and set each one's ``error``; returns when the broker has answered for all.

        Cancelling it leaves unknown what was sent.
        """
        producer = self._producer
        try:
            async with asyncio.timeout(self._options.delivery_timeout):
                groups = await self._by_partition(producer, records)
                if len(groups) == 1:
                    await self._send_group(producer, *next(iter(groups.items())))
                elif groups:
                    await asyncio.gather(*(self._send_group(producer, *group) for group in groups.items()))
        except TimeoutError:
            for record in records:
                if record.error is _UNKNOWN:
                    record.error = PublishTimeout(
                        f"{record.topic}: not confirmed within {self._options.delivery_timeout:g} s; Kafka may have it"
                    )
        if any(record.error is not None and ends_producer(record.error.__cause__) for record in records):
            await self._renew(producer)

    async def _by_partition(self, producer: Any, records: Sequence[Record]) -> dict[TopicPartition, list[Record]]:
        groups: dict[TopicPartition, list[Record]] = {}
        by_topic: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            record.error = _UNKNOWN
            by_topic[record.topic].append(record)
        for topic, of_topic in by_topic.items():
            try:
                async with self._asking[topic]:  # nobody overtakes a call that has to ask first
                    count = await self._count(producer, topic)
            except (kafka.KafkaError, BrokerError, PublishError) as exc:
                for record in of_topic:
                    record.error = publish_error(exc, topic, record.size, self._options.max_body)
                continue
            partitions: defaultdict[int, list[Record]] = defaultdict(list)
            for record in of_topic:
                partitions[self._partition(record, count)].append(record)
            groups |= {TopicPartition(topic, number): found for number, found in partitions.items()}
        return groups

    async def _count(self, producer: Any, topic: str) -> int:
        known = producer.client.cluster.partitions_for_topic(topic)
        if not known:
            try:
                if not await self._exists(topic):
                    raise Unroutable(f"there is no topic {topic!r}")
                known = await producer.partitions_for(topic)
            except (BrokerUnavailable, kafka.UnknownTopicOrPartitionError) as exc:
                # It does exist, or nobody can tell.
                raise NotNow(f"{topic}: {exc}") from exc
        return len(known)

    def _partition(self, record: Record, count: int) -> int:
        if record.partition is not None:
            return record.partition
        if record.key is not None:
            return _partition_of(record.key, count)
        # In turn, not in runs: few but slow messages must spread over the consumers too.
        turn = self._turn[record.topic] = self._turn[record.topic] + 1
        return turn % count

    async def _send_group(self, producer: Any, tp: TopicPartition, records: Sequence[Record]) -> None:
        futures = []
        async with self._locks[tp]:  # keeps the partition's batches in the order of the calls
            start = 0
            while start < len(records):
                batch = producer.create_batch()
                end = _fill(batch, records, start)
                if end == start:
                    records[start].error = publish_error(
                        kafka.MessageSizeTooLargeError(), tp.topic, records[start].size, self._options.max_body
                    )
                    start += 1
                    continue
                try:
                    future = await producer.send_batch(batch, tp.topic, partition=tp.partition)
                except Exception as exc:  # noqa: BLE001 - whatever it is, it is these records' own error
                    self._fail(records[start:end], exc)
                else:
                    future.add_done_callback(_retrieve)
                    futures.append((future, records[start:end]))
                start = end
        for future, sent in futures:
            await self._conclude(producer, tp, future, sent)

    async def _conclude(self, producer: Any, tp: TopicPartition, future: Any, records: Sequence[Record]) -> None:
        try:
            await self._answer(tp.topic, future)
        except kafka.MessageSizeTooLargeError as exc:
            await self._sort_out(producer, tp, records, exc)
        except kafka.KafkaError as exc:
            self._fail(records, exc)
        else:
            for record in records:
                record.error = None

    async def _answer(self, topic: str, future: Any) -> None:
        """Wait for a batch; raises what became of it.

        The library tries a topic that was deleted again for ever, several times a second.
        """
        done, _ = await asyncio.wait([future], timeout=_DOUBT)
        if not done:
            gone = asyncio.create_task(self._wait_until_gone(topic))
            try:
                await asyncio.wait([future, gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
            if not future.done():
                raise TopicGone(f"{topic} was deleted")
        future.result()

    async def _wait_until_gone(self, topic: str) -> None:
        while True:
            with contextlib.suppress(BrokerError):  # nobody can tell now
                if not await self._exists(topic):
                    return
            await asyncio.sleep(_DOUBT)

    async def _sort_out(self, producer: Any, tp: TopicPartition, records: Sequence[Record], exc: Exception) -> None:
        """Send a refused batch's records one by one: the topic's limit is for batches, one may be to blame."""
        if len(records) == 1:
            limit = min(await self._largest(tp.topic), self._options.max_body)
            records[0].error = publish_error(exc, tp.topic, records[0].size, limit)
            records[0].error.__cause__ = exc
            return
        await self._renew(producer)
        for record in records:
            current = self._producer
            await self._send_group(current, tp, [record])
            if record.error is not None and ends_producer(record.error.__cause__):
                await self._renew(current)

    def _fail(self, records: Sequence[Record], exc: BaseException) -> None:
        for record in records:
            record.error = publish_error(exc, record.topic, record.size, self._options.max_body)
            record.error.__cause__ = exc

    async def _renew(self, broken: Any) -> None:
        """Replace a producer that will never send again."""
        async with self._renewing:
            if self._producer is not broken:
                return
            _log.warning("the producer's session with the broker is over; starting a new one")
            try:
                self._producer = await self._start()
            except Exception as exc:  # noqa: BLE001 - the next publish tries again
                _log.warning("no new producer yet: %s", exc)
                return
            await _stop(broken)

    async def _start(self) -> Any:
        options = self._options
        producer = AIOKafkaProducer(
            **self._connection,
            acks="all",
            enable_idempotence=options.idempotence,
            compression_type=None if options.compression == "none" else options.compression,
            max_batch_size=max(_BATCH, options.max_body + 64 * 1024),
            max_request_size=max(4 * _BATCH, options.max_body + 64 * 1024),
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
        )
        try:
            await producer.start()
            mind(producer.client)
        except BaseException as exc:
            await _stop(producer)
            if isinstance(exc, kafka.KafkaError | OSError):
                raise broker_error(exc, "starting the producer") from exc
            raise
        return producer


_UNKNOWN = PublishTimeout("not answered")


def _fill(batch: Any, records: Sequence[Record], start: int) -> int:
    """Put as many records as fit into *batch*; return the index of the first one that did not."""
    append, size, now = batch.append, 0, int(time.time() * 1000)
    for index in range(start, len(records)):
        record = records[index]
        value = record.value
        size += len(value or b"") + 64
        if size > _BATCH and index > start:
            batch.close()
            return index
        if append(timestamp=now, key=record.key, value=value, headers=to_headers(record.headers)) is None:
            return index
    batch.close()
    return len(records)


@lru_cache(maxsize=8192)
def _partition_of(key: bytes, count: int) -> int:
    """Return the partition of *key* as Kafka's own clients choose it."""
    return int((murmur2(key) & 0x7FFFFFFF) % count)


def _retrieve(future: Any) -> None:
    """Fetch a batch's error, so that one nobody waits for any more is not reported as forgotten."""
    if not future.cancelled():
        future.exception()


async def _stop(producer: Any) -> None:
    with contextlib.suppress(kafka.KafkaError, TimeoutError, OSError, RuntimeError):
        async with asyncio.timeout(_STOP_TIMEOUT):
            await producer.stop()
            return
    # It waits for its last batches for ever while the broker is away.
    with contextlib.suppress(kafka.KafkaError, OSError):
        await producer._sender.close()  # noqa: SLF001 - there is no public way to give up
    await close_client(producer.client)
