"""One member of a consumer group: polling, rebalances and commits.

A rebalance of this client is eager: every member gives up all its partitions and gets new ones. Three things keep
that cheap. Running messages get a moment to finish before the partitions go. A partition that comes straight back,
which its unchanged commit proves, goes on where it was, with its messages still in flight. And the positions are
read and set here, since the library takes a coordinator that is still loading for a group that never committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from msgbus.adapter import Start
from msgbus.errors import BrokerError
from msgbus_kafka._begin import TimeOf, begin
from msgbus_kafka._clients import start_consumer, stop_consumer
from msgbus_kafka._cluster import Cluster
from msgbus_kafka._errors import broker_error
from msgbus_kafka._fetch import Fetch
from msgbus_kafka._inbox import Entry
from msgbus_kafka._offsets import METADATA_LIMIT
from msgbus_kafka._options import Options
from msgbus_kafka._partition import Partition

__all__ = ["GroupConsumer", "Membership"]

_log = logging.getLogger("msgbus.kafka")
_COMMIT_EVERY = 0.1
"""Seconds between commits: longer repeats more after a crash, shorter costs requests."""
_COMMIT_TIMEOUT = 5.0
_POLL_MS = 1000
_REBALANCE_MS = 30_000
"""How long the group waits for a member in a rebalance; must exceed the drain and the commit that follows it."""
_REQUEST_MS = _REBALANCE_MS + 5_000
"""Joining a group is one request that lasts as long as the rebalance."""
_NEVER_MS = 2**31 - 1
_RETRY = 0.5
_SLOW = 0.2
"""Seconds without room after which the handlers are taken for slow, so that there is no hurry to fetch more."""
_CANCEL_TIMEOUT = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a consumer joins.

    Attributes:
        group: The group.
        topics: The topics, or
        pattern: The expression they match.
        together: Whether partitions of one number go to one member, whatever the topic.
        start: Where to begin on *from_start*, whatever was committed.
        from_start: Tells for a topic whether *start* is for it.
    """

    group: str
    topics: tuple[str, ...] = ()
    pattern: str | None = None
    together: bool = False
    start: Start | None = None
    from_start: Callable[[str], bool] = lambda _: True


class GroupConsumer:
    """Polls into *deliver* while there is *room*; see the module.

    Args:
        membership: What to join.
        connection: The arguments every aiokafka client takes.
        options: The URL's options.
        cluster: Where to ask for offsets.
        deliver: Takes a partition's records.
        room: Returns how many more records may be delivered now.
        changed: Called when partitions came, went or may go on.
        time_of: Tells how old the message at an offset is.
    """

    def __init__(
        self,
        membership: Membership,
        connection: Mapping[str, Any],
        options: Options,
        cluster: Cluster,
        *,
        deliver: Callable[[Partition, Sequence[Entry]], None],
        room: Callable[[], int],
        changed: Callable[[], None],
        time_of: TimeOf,
    ) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self.draining = False
        self.limbo = True
        self.failure: BrokerError | None = None
        self._membership = membership
        self._connection = dict(connection)
        self._options = options
        self._cluster = cluster
        self._deliver = deliver
        self._room = room
        self._changed = changed
        self._time_of = time_of
        self._start = membership.start
        self._suspended: dict[TopicPartition, Partition] = {}
        self._paused: set[TopicPartition] = set()
        self._consumer: Any = None
        self._closing = False
        self._largest = max(1024 * 1024, options.max_body + 128 * 1024)
        self._limit = METADATA_LIMIT
        self._uncommitted = False
        self._wake = asyncio.Event()
        self._adopted = asyncio.Event()
        self._resolved = asyncio.Event()
        self._committing = asyncio.Lock()
        self._adoption: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self, timeout: float) -> None:
        """Join the group and wait up to *timeout* seconds for partitions; raises `BrokerError`."""
        self._consumer = await self._connect()
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._commit_now_and_then())]
        with contextlib.suppress(TimeoutError):  # a rebalance that takes longer goes on behind our back
            async with asyncio.timeout(timeout):
                await self._adopted.wait()

    async def aclose(self) -> None:
        """Commit, leave the group, disconnect."""
        if self._closing:
            return
        self._closing = True
        commits = self._tasks[1:]
        await _cancel([*commits, *([self._adoption] if self._adoption else [])])
        try:
            if not self.limbo:
                await self._commit(self.partitions)
        finally:
            self._bury([*self.partitions.values(), *self._suspended.values()])
            self.partitions, self._suspended = {}, {}
            self._wake.set()
            if self._consumer is not None:
                await stop_consumer(self._consumer)
            await _cancel(self._tasks[:1])

    async def _connect(self) -> Any:
        options, membership = self._options, self._membership
        consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=membership.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            partition_assignment_strategy=(
                RangePartitionAssignor if membership.together else RoundRobinPartitionAssignor,
            ),
            session_timeout_ms=int(options.session_timeout * 1000),
            # The members of a group learn by their heartbeats that somebody joins.
            heartbeat_interval_ms=int(min(options.session_timeout / 3, 0.5) * 1000),
            rebalance_timeout_ms=_REBALANCE_MS,
            request_timeout_ms=_REQUEST_MS,
            # Slow handlers do not stop the polling, so a limit on it would only throw out members that wait for room.
            max_poll_interval_ms=_NEVER_MS,
            max_partition_fetch_bytes=self._largest,
            # New partitions and topics that were made anew are noticed at the latest after this time.
            metadata_max_age_ms=5_000 if membership.pattern else 10_000,
        )
        await start_consumer(consumer, f"starting a consumer of {membership.group!r}")
        listener = _Listener(self, consumer)
        if membership.pattern:
            consumer.subscribe(pattern=membership.pattern, listener=listener)
        else:
            consumer.subscribe(list(membership.topics), listener=listener)
        return consumer

    async def _run(self) -> None:
        while not self._closing:
            try:
                if self._consumer is None:
                    self._consumer = await self._connect()
                await self._poll(self._consumer, Fetch(self._consumer, self._cluster, self._largest, Entry))
            except kafka.ConsumerStoppedError:
                return
            except Exception as exc:  # noqa: BLE001 - whatever broke the consumer, a new one takes its place
                await self._broke(exc)

    async def _broke(self, exc: Exception) -> None:
        if self._closing:
            return  # it was stopped in the middle of something
        self.failure = broker_error(exc, f"consuming as {self._membership.group!r}")
        _log.warning("%s; connecting anew", self.failure)
        consumer, self._consumer = self._consumer, None
        self.suspend()
        self.limbo = True
        self._changed()
        if consumer is not None:
            await stop_consumer(consumer)
        await asyncio.sleep(_RETRY)

    async def _poll(self, consumer: Any, fetch: Fetch) -> None:
        while not self._closing:
            room = self._room()
            if room <= 0:
                await self._wait_for_room(fetch)
                continue
            self._pause_full(consumer)
            # Never cancelled: that would lose what it is about to return.
            for tp, records in (await fetch.many(_POLL_MS, room)).items():
                partition = self.partitions.get(tp)
                if partition is None:
                    continue  # not adopted yet; its position is set when it is
                if records[0].offset < partition.tracker.next:
                    partition = self._start_over(partition, records[0].offset)
                self._deliver(partition, records)

    async def _wait_for_room(self, fetch: Fetch) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(_SLOW):
                await self._wake.wait()
        except TimeoutError:
            fetch.rest()
            await self._wake.wait()

    def wake(self) -> None:
        """Look again whether there is room."""
        self._wake.set()

    def _pause_full(self, consumer: Any) -> None:
        assigned = consumer.assignment()
        for tp, partition in self.partitions.items():
            if tp not in assigned:
                continue
            if partition.full and tp not in self._paused:
                self._paused.add(tp)
                consumer.pause(tp)
            elif tp in self._paused and partition.relaxed:
                self._paused.discard(tp)
                consumer.resume(tp)

    def _start_over(self, old: Partition, offset: int) -> Partition:
        """Replace a partition whose log was cut or made anew: its offsets mean other messages now."""
        _log.warning("%s went back from offset %d to %d; reading on from there", old.tp, old.tracker.next, offset)
        self.partitions[old.tp] = new = Partition(old.tp, offset, None)
        self._bury([old])
        return new

    @property
    def held(self) -> list[Partition]:
        """The partitions whose messages may still be settled."""
        return [*self.partitions.values(), *self._suspended.values()]

    async def wait_until_ours(self, timeout: float) -> bool:
        """Wait until a rebalance has told whose the partitions are; False if it does not within *timeout* seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.limbo:
                    self._resolved.clear()
                    await self._resolved.wait()
        except TimeoutError:
            return False
        return True

    # -- rebalances ---------------------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Stop handing out: the partitions may go."""
        if self._adoption is not None:
            self._adoption.cancel()
        self.draining = True
        self._suspended |= self.partitions
        self.partitions = {}

    async def release(self) -> None:
        """Let running messages finish for a moment, commit, and from then on treat no partition as ours."""
        self.suspend()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.rebalance_drain):
                    while any(p.in_flight for p in self._suspended.values()):
                        self._wake.clear()
                        await self._wake.wait()
            if not self.limbo:
                await self._commit(self._suspended)
        finally:
            self.limbo = True

    def assign(self, consumer: Any, assigned: Sequence[TopicPartition]) -> None:
        """Take new partitions, as soon as it is known where to begin."""
        if self._closing:
            return
        consumer.pause(*assigned)
        self._adoption = asyncio.create_task(self._adopt(consumer, assigned))

    async def _adopt(self, consumer: Any, assigned: Sequence[TopicPartition]) -> None:
        while True:
            try:
                committed = await self._cluster.committed(self._membership.group, assigned) if assigned else {}
                chosen = [tp for tp in assigned if self._membership.from_start(tp.topic)]
                starts = await begin(self._cluster, assigned, committed, self._start, chosen, self._time_of)
                break
            except Exception as exc:  # noqa: BLE001 - giving up would leave the partitions unread for good
                _log.warning("cannot tell yet where to read %s: %r", self._membership.group, exc)
                await asyncio.sleep(_RETRY)
        if not consumer.assignment().issuperset(assigned):
            return  # the next assignment is on its way
        old, self._suspended = self._suspended, {}
        for tp in assigned:
            known, found = old.get(tp), committed.get(tp)
            if known is not None and known.was_committed(found):
                self.partitions[tp] = old.pop(tp)
            else:
                self.partitions[tp] = Partition(tp, starts[tp], found)
            consumer.seek(tp, self.partitions[tp].tracker.next)
        self._bury(old.values())
        self._start = None
        self._paused = set()
        consumer.resume(*assigned)
        self.draining = self.limbo = False
        self.failure = None
        self._adopted.set()
        self._resolved.set()
        self._wake.set()
        self._changed()

    def _bury(self, partitions: Any) -> None:
        for partition in partitions:
            partition.live = False
        self._changed()

    # -- commits ------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Commit now what is finished."""
        if not self.limbo and not self.draining:
            await self._commit(self.partitions)

    async def _commit_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_RETRY if self._uncommitted else _COMMIT_EVERY)
            await self.flush()

    async def _commit(self, partitions: Mapping[TopicPartition, Partition]) -> None:
        """Commit what changed; what fails is tried again next time, or comes again from the broker."""
        async with self._committing:
            consumer = self._consumer
            dirty = [partition for partition in partitions.values() if partition.dirty]
            if self.limbo or not dirty or consumer is None:
                return
            offsets = {p.tp: tuple(p.to_commit(self._limit)) for p in dirty}
            try:
                async with asyncio.timeout(_COMMIT_TIMEOUT):
                    await consumer.commit(offsets)
            except (kafka.KafkaError, TimeoutError, OSError) as exc:
                self._uncommitted = True
                for partition in dirty:
                    partition.dirty = True
                if isinstance(exc, kafka.OffsetMetadataTooLargeError):
                    self._limit //= 2
                _log.debug("not committed for %s: %r", self._membership.group, exc)
            else:
                self._uncommitted = False
                for partition in dirty:
                    partition.was_confirmed()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc] # the base class has no types
    def __init__(self, owner: GroupConsumer, consumer: Any) -> None:
        self._owner = owner
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._owner.release()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self._owner.assign(self._consumer, sorted(assigned))


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_TIMEOUT)
