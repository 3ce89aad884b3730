"""Taking records from the library's consumer as they were parsed, and those that it cannot parse.

The library makes a `ConsumerRecord` of each parsed record, which is a quarter of what a record costs, and we make a
message of that again. Here the step between is left out, for consumers of ours alone, and what a record is made into
is made while it is being parsed: thousands of records that wait for it keep the garbage collector busy.

It also refuses a whole batch, for ever, when a header's name is not UTF-8, as producers in C may write it. Such a
batch is read here in a way that keeps the records and escapes the names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiokafka.errors as kafka
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.record.default_records import _DefaultRecordBatchPy

from msgbus_kafka._cluster import Cluster

__all__ = ["Fetch", "consumer_record"]

_log = logging.getLogger("msgbus.kafka")
_BUSY_WAIT_MS, _IDLE_WAIT_MS = 20, 500
"""How long the broker may hold a request for records that are not there yet. The library asks a broker for nothing
else meanwhile, not even for a partition whose records were used up since: while a backlog is worked off, the request
for an empty retry topic must not hold up the full one beside it."""
_BATCH_HEADER = 12
"""Bytes of a record batch before what its length field counts: the base offset and the length itself."""


class Fetch:
    """Takes records from one consumer.

    Args:
        consumer: The library's, started.
        cluster: Where to ask for what the consumer cannot read.
        largest: How many bytes the largest batch may have.
        make: What to make of each parsed record.
    """

    def __init__(self, consumer: Any, cluster: Cluster, largest: int, make: Callable[[Any], Any]) -> None:
        self._consumer = consumer
        self._cluster = cluster
        self._largest = largest
        self._make = make
        self._unreadable: dict[TopicPartition, int] = {}
        # There is no public way to its buffer, nor to change how long it waits.
        self._fetcher = consumer._fetcher  # noqa: SLF001
        self._fetcher._records = _Buffer(self._unreadable, make)  # noqa: SLF001
        self._fetcher._in_flight = _InFlight(self._fetcher)  # noqa: SLF001

    async def many(self, timeout_ms: int, max_records: int | None = None) -> Mapping[TopicPartition, Any]:
        """Return what was made of records; see `AIOKafkaConsumer.getmany`, which must never be cancelled."""
        found: Mapping[TopicPartition, Any] = await self._consumer.getmany(
            timeout_ms=timeout_ms, max_records=max_records
        )
        self._fetcher._fetch_max_wait_ms = _BUSY_WAIT_MS if found else _IDLE_WAIT_MS  # noqa: SLF001
        if not found:
            self._raise_what_ended_it()
        if self._unreadable and not found:
            tp, offset = self._unreadable.popitem()
            if await self._consumer.position(tp) == offset:
                return {tp: await self._read(tp, offset)}
        return found

    def _raise_what_ended_it(self) -> None:
        """Raise what the library's task for fetching died of; it would return nothing for ever, and not tell."""
        task = self._fetcher._fetch_task  # noqa: SLF001
        if task.done() and not task.cancelled() and (exc := task.exception()) is not None:
            raise exc

    def rest(self) -> None:
        """Take it easy: nothing is wanted for a while."""
        self._fetcher._fetch_max_wait_ms = _IDLE_WAIT_MS  # noqa: SLF001

    async def _read(self, tp: TopicPartition, offset: int) -> list[Any]:
        """Read the batch with *offset* whatever its headers are called, and let the consumer go on behind it."""
        data, aborted = await self._cluster.fetch(tp, offset, self._largest)
        length = int.from_bytes(data[8:_BATCH_HEADER], "big", signed=True)
        batch = _DefaultRecordBatchPy(data[: _BATCH_HEADER + length])
        if not batch.validate_crc():
            raise kafka.CorruptRecordException(f"{tp.topic} {tp.partition}: the batch at offset {offset} is damaged")
        batch._maybe_uncompress()  # noqa: SLF001 - all that it does not do by itself is to be lenient
        batch._buffer = _Lenient(batch._buffer)  # noqa: SLF001
        gone = any(producer == batch.producer_id and first <= batch.base_offset for producer, first in aborted)
        records = [] if gone else [self._make(record) for record in batch if record.offset >= offset]
        _log.warning("%s %d: header names at offset %d are not UTF-8; escaped", tp.topic, tp.partition, offset)
        self._consumer.seek(tp, batch.next_offset)
        return records


class _Buffer(dict[TopicPartition, Any]):
    """The library's buffer of fetched batches; what is put in is unpacked in our way."""

    def __init__(self, unreadable: dict[TopicPartition, int], make: Callable[[Any], Any]) -> None:
        self._unreadable = unreadable
        self._make = make

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if type(result) is FetchResult:
            records = result._partition_records  # noqa: SLF001
            records.__class__ = _Unpacked
            records.unreadable = self._unreadable
            records.make = self._make
            records._records_iterator = records._unpack_records()  # noqa: SLF001
        super().__setitem__(tp, result)


class _InFlight(set[int]):
    """The nodes that are asked for records now; the library looks again when one is not any more.

    By itself it does so only when the request is done, which can be a moment before: then it finds the node still
    busy, and looks again after a fifth of a second.
    """

    def __init__(self, fetcher: Any) -> None:
        super().__init__(fetcher._in_flight)  # noqa: SLF001
        self._fetcher = fetcher

    def discard(self, node: object, /) -> None:
        super().discard(node)
        self._fetcher._notify(self._fetcher._wait_consume_future)  # noqa: SLF001


class _Unpacked(PartitionRecords):  # type: ignore[misc] # the base class has no types
    """One partition's fetched batches, unpacked as they are taken."""

    unreadable: dict[TopicPartition, int]
    make: Callable[[Any], Any]

    def __iter__(self) -> Any:
        return self._records_iterator  # instead of a call for each record

    def _unpack_records(self) -> Any:
        begun = self.next_fetch_offset
        try:
            yield from super()._unpack_records()
        except (kafka.CorruptRecordException, UnicodeDecodeError):
            # What was read before it is returned first. An exception here would lose that.
            if self.next_fetch_offset == begun:
                self.unreadable[self._tp] = begun
        finally:
            self._records_iterator = None  # breaks the reference cycle, as the library does

    def _consumer_record(self, _: TopicPartition, record: Any) -> Any:
        return self.make(record)


class _Lenient(bytearray):
    """Decodes what is not UTF-8, too: such bytes become a backslash, an x and two digits."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Lenient(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


def consumer_record(tp: TopicPartition, record: Any) -> ConsumerRecord[bytes, bytes]:
    """Return what the library makes of a parsed record."""
    key, value = record.key, record.value
    return ConsumerRecord(
        tp.topic,
        tp.partition,
        record.offset,
        record.timestamp,
        record.timestamp_type,
        key,
        value,
        record.checksum,
        -1 if key is None else len(key),
        -1 if value is None else len(value),
        tuple(record.headers),
    )
