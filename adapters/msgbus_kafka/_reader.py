"""Looking without consuming: browsing a topic, counting what a group has not handled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from msgbus.adapter import Received
from msgbus.errors import ConfigError
from msgbus_kafka._begin import from_position, to_position
from msgbus_kafka._clients import start_consumer, stop_consumer
from msgbus_kafka._cluster import EARLIEST, LATEST, Cluster, Committed
from msgbus_kafka._fetch import Fetch, consumer_record
from msgbus_kafka._offsets import Run, decode_progress
from msgbus_kafka._wire import CHANNEL, DUE, decode_key, from_headers

__all__ = ["Reader"]

_PATIENCE = 5.0
"""Seconds without any record after which a partition is taken to be read to its end."""


class Reader:
    """Reads without a group.

    Args:
        cluster: Where to ask for offsets.
        connection: The arguments every aiokafka client takes.
        largest: The largest record in bytes.
    """

    def __init__(self, cluster: Cluster, connection: Mapping[str, Any], largest: int) -> None:
        self._cluster = cluster
        self._connection = dict(connection)
        self._largest = largest + 128 * 1024

    async def browse(
        self, topic: str, group: str | None, *, limit: int, after: str | None, channel: str
    ) -> list[Received]:
        """Return up to *limit* records of *topic* that *group* has not finished (all, for None), in order."""
        parts = await self._partitions([topic])
        first, last, committed = await self._bounds(parts, group)
        found: list[Received] = []
        from_partition, from_offset = _after(after)
        async with self._consumer() as consumer:
            for tp in parts:
                if tp.partition < from_partition or len(found) >= limit:
                    continue
                mark = committed.get(tp)
                start = max(first[tp], mark.offset if mark else 0)
                if tp.partition == from_partition:
                    start = max(start, from_offset + 1)
                finished = decode_progress(mark.offset, mark.metadata).finished if mark else ()
                async for record in self._records(consumer, tp, start, last[tp]):
                    if any(run[0] <= record.offset < run[1] for run in finished):
                        continue
                    found.append(_browsed(tp, record, channel))
                    if len(found) >= limit:
                        break
        return found

    async def time_of(self, tp: TopicPartition, offset: int) -> int | None:
        """Return the time in milliseconds of the first record at or after *offset*; None if there is none."""
        if tp not in await self._partitions([tp.topic]):
            return None
        first, last, _ = await self._bounds([tp], None)
        async with self._consumer() as consumer:
            async for record in self._records(consumer, tp, max(offset, first[tp]), last[tp]):
                return int(record.timestamp)
        return None

    async def backlog(self, topics: Sequence[str], group: str | None) -> int:
        """Return how many records of *topics* the *group* has not finished."""
        parts = await self._partitions(topics)
        first, last, committed = await self._bounds(parts, group)
        total = 0
        for tp in parts:
            mark = committed.get(tp)
            start = max(first[tp], mark.offset if mark else 0)
            finished = decode_progress(mark.offset, mark.metadata).finished if mark else ()
            total += max(0, last[tp] - start) - _length(finished, start, last[tp])
        return total

    async def _partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        found = await self._cluster.topics(topics)
        return [TopicPartition(topic, number) for topic in sorted(found) for number in range(found[topic].partitions)]

    async def _bounds(
        self, parts: Sequence[TopicPartition], group: str | None
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int], dict[TopicPartition, Committed]]:
        if not parts:
            return {}, {}, {}
        first = await self._cluster.offsets(parts, EARLIEST)
        last = await self._cluster.offsets(parts, LATEST)
        return first, last, await self._cluster.committed(group, parts) if group else {}

    @contextlib.asynccontextmanager
    async def _consumer(self) -> AsyncIterator[Any]:
        consumer = AIOKafkaConsumer(
            **self._connection,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=self._largest,
            fetch_max_wait_ms=100,
        )
        await start_consumer(consumer, "starting to browse")
        try:
            yield consumer
        finally:
            await stop_consumer(consumer)

    async def _records(self, consumer: Any, tp: TopicPartition, start: int, end: int) -> AsyncIterator[Any]:
        """Yield the records of a partition from *start* up to *end*."""
        if start >= end:
            return
        consumer.assign([tp])
        consumer.seek(tp, start)
        fetch = Fetch(consumer, self._cluster, self._largest, partial(consumer_record, tp))
        quiet_since = time.monotonic()
        while await consumer.position(tp) < end and time.monotonic() - quiet_since < _PATIENCE:
            for record in (await fetch.many(500)).get(tp, ()):
                quiet_since = time.monotonic()
                if record.offset >= end:
                    return
                yield record


def _browsed(tp: TopicPartition, record: Any, channel: str) -> Received:
    headers = from_headers(record.headers)
    headers.pop(DUE, None)
    return Received(
        record.value or b"",
        headers,
        channel=headers.pop(CHANNEL, "") or channel,
        key=decode_key(record.key),
        time=record.timestamp / 1000,
        position=to_position(tp.partition, record.offset),
        raw=record,
    )


def _length(runs: Sequence[Run], start: int, end: int) -> int:
    return sum(max(0, min(last, end) - max(first, start)) for first, last in runs)


def _after(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, -1
    if not text.isdecimal():
        raise ConfigError(f"a position in a Kafka topic is a whole number, got {text!r}")
    return from_position(int(text))
