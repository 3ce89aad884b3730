"""A subscription: hands out what its consumer fetched, and settles it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgbus.adapter import (
    ATTEMPTS,
    Ack,
    Clock,
    DeadLetter,
    Nack,
    Outcome,
    Received,
    SubscribeOptions,
    Subscription,
)
from msgbus.errors import ClosedError, LeaseLost, SettleError
from msgbus_kafka._begin import TimeOf
from msgbus_kafka._cluster import Cluster
from msgbus_kafka._consumer import GroupConsumer, Membership
from msgbus_kafka._inbox import Entry, Inbox
from msgbus_kafka._names import step_for
from msgbus_kafka._offsets import Waiting
from msgbus_kafka._options import Options
from msgbus_kafka._partition import Partition
from msgbus_kafka._producer import Producer, Record
from msgbus_kafka._wire import CHANNEL, DUE, encode_key

__all__ = ["KafkaSubscription", "Route"]

_ABSURD = 1e12
"""No count of attempts and no time in seconds since 1970 is as much."""
_REBALANCE_WAIT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a subscription's messages come from and go to.

    Attributes:
        membership: The group and its topics.
        channels: The channel of a topic, where it is not its name.
        retries: The topics in which messages wait, by step; empty when they wait in memory.
        side: All topics that carry copies with headers of ours.
        dead: Where dead letters go.
        keyed: Whether messages of one key keep their order.
    """

    membership: Membership
    channels: Mapping[str, str] = field(default_factory=dict)
    retries: Mapping[int, str] = field(default_factory=dict)
    side: frozenset[str] = frozenset()
    dead: str = ""
    keyed: bool = False


class KafkaSubscription(Subscription):
    """One consumer on one source.

    Args:
        route: Where messages come from and go to.
        options: How it is consumed.
        connection: The arguments every aiokafka client takes.
        settings: The URL's options.
        cluster: Where to ask for offsets.
        producer: Writes the copies of what waits or is dead.
        clock: Tells what is due.
        time_of: Tells how old the message at an offset is.
        closed: Called when it is closed.
    """

    def __init__(
        self,
        route: Route,
        options: SubscribeOptions,
        connection: Mapping[str, Any],
        settings: Options,
        *,
        cluster: Cluster,
        producer: Producer,
        clock: Clock,
        time_of: TimeOf,
        closed: Callable[[KafkaSubscription], None],
    ) -> None:
        self._route = route
        self._prefetch = max(1, options.prefetch)
        self._producer = producer
        self._clock = clock
        self._on_closed = closed
        self._inbox = Inbox(keyed=route.keyed)
        self._in_flight = 0
        self._arrived = asyncio.Event()
        self._closed = False
        self._consumer = GroupConsumer(
            route.membership,
            connection,
            settings,
            cluster,
            deliver=self._take_in,
            room=self._room,
            changed=self._partitions_changed,
            time_of=time_of,
        )

    async def open(self, timeout: float) -> None:
        """Join the group; raises `BrokerError`."""
        await self._consumer.open(timeout)

    async def aclose(self) -> None:
        """Stop consuming."""
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        try:
            await self._consumer.aclose()
        finally:
            self._on_closed(self)

    @property
    def in_flight(self) -> int:
        """How many messages are handed out and not settled."""
        return self._in_flight

    async def flush(self) -> None:
        """Commit now what is finished."""
        await self._consumer.flush()

    # -- from the consumer --------------------------------------------------------------------------------------

    def _room(self) -> int:
        """Return how many more records to fetch: none until there is room for a good many, or nothing is left."""
        waiting = len(self._inbox)
        free = self._prefetch - self._in_flight - waiting
        return free if waiting == 0 or free * 4 >= self._prefetch else 0

    def _take_in(self, partition: Partition, entries: Sequence[Entry]) -> None:
        tracker, topic = partition.tracker, partition.tp.topic
        number, channel = self._inbox.number, self._route.channels.get(topic, topic)
        for entry in entries:
            entry.arrived(next(number), partition, channel)
        if tracker.is_plain and topic not in self._route.side:
            tracker.receive_all([entry.offset for entry in entries])
            self._inbox.extend(entries)
        else:
            for entry in entries:
                if tracker.receive(entry.offset):
                    self._look_at(entry)
                    # What was nacked before a restart holds back its key again; what was published late does not.
                    (self._inbox.put_back if entry.offset in tracker.waiting else self._inbox.put)(entry)
            partition.dirty = True
        self._arrived.set()

    def _look_at(self, entry: Entry) -> None:
        """Note for what an entry may have to wait: for its time, or for its next attempt."""
        partition, headers = entry.partition, entry.headers
        if partition.tp.topic in self._route.side:
            entry.aside = True
            entry.channel = headers.pop(CHANNEL, "") or entry.channel
            entry.due = _number(headers.pop(DUE, ""))
        if (state := partition.tracker.waiting.get(entry.offset)) is not None:
            if state.attempts:
                headers[ATTEMPTS] = str(state.attempts)
                entry.plain = False
            entry.due = state.due

    def _partitions_changed(self) -> None:
        self._inbox.drop_dead()
        self._in_flight = sum(p.in_flight for p in self._consumer.held)
        self._arrived.set()

    # -- receiving ----------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Received]:
        """Return what is due; see `Subscription.receive`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            if self._closed:
                raise ClosedError("the subscription is closed")
            if (failure := self._consumer.failure) is not None:
                self._consumer.failure = None
                raise failure
            now = self._clock.now()
            if not self._consumer.draining and (entries := self._take(limit, now)):
                return entries
            patience = deadline - loop.time()
            if patience <= 0:
                return []
            due = self._inbox.next_due()
            self._arrived.clear()
            await self._wait(patience if due is None else min(patience, max(due - now, 0.001)))

    def _take(self, limit: int, now: float) -> list[Entry]:
        waiting = len(self._inbox)
        entries = self._inbox.take(limit, now)
        for entry in entries:
            entry.partition.in_flight += 1
        self._in_flight += len(entries)
        if len(self._inbox) != waiting:
            self._consumer.wake()
        return entries

    async def _wait(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._arrived.wait()
        except TimeoutError:
            return

    # -- settling -----------------------------------------------------------------------------------------------

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[SettleError | None]:
        """Settle messages; see `Subscription.settle`."""
        results: list[SettleError | None] = [None] * len(outcomes)
        moves: list[tuple[int, Entry, Record]] = []
        finished: defaultdict[Partition, list[int]] = defaultdict(list)
        for index, outcome in enumerate(outcomes):
            entry = outcome.received
            assert isinstance(entry, Entry), "settle takes what this subscription handed out"
            if entry.settled or not entry.partition.live:
                results[index] = _lost(entry)
            elif type(outcome) is Ack:
                entry.settled = True
                finished[entry.partition].append(entry.offset)
            elif type(outcome) is DeadLetter:
                moves.append((index, entry, self._copy(entry, self._route.dead, outcome.headers)))
            elif type(outcome) is Nack and (outcome.delay <= 0 or not self._route.retries):
                self._put_back(entry, outcome)
            elif type(outcome) is Nack:
                moves.append((index, entry, self._retry(entry, outcome)))
        for partition, offsets in finished.items():
            self._finish(partition, offsets)
        self._consumer.wake()
        if moves:
            await self._move(moves, results)
            self._consumer.wake()
        return results

    async def _move(self, moves: Sequence[tuple[int, Entry, Record]], results: list[SettleError | None]) -> None:
        """Publish copies; what is confirmed is finished here, what is not stays as it was."""
        if not await self._consumer.wait_until_ours(_REBALANCE_WAIT):
            for index, _, _ in moves:
                results[index] = SettleError("the group is rebalancing; the message may go to another consumer")
            return
        await self._producer.send([record for _, entry, record in moves if entry.partition.live])
        for index, entry, record in moves:
            if not entry.partition.live:
                results[index] = _lost(entry)
            elif record.error is not None:
                results[index] = error = SettleError(f"not moved to {record.topic!r}: {record.error}")
                error.__cause__ = record.error
            else:
                entry.settled = True
                self._finish(entry.partition, [entry.offset])

    def _finish(self, partition: Partition, offsets: Sequence[int]) -> None:
        partition.tracker.finish_all(offsets)
        partition.dirty = True
        partition.in_flight -= len(offsets)
        self._in_flight -= len(offsets)

    def _put_back(self, entry: Entry, nack: Nack) -> None:
        """Let a message come again from memory, without losing its place or its attempts."""
        partition, offset = entry.partition, entry.offset
        now = self._clock.now()
        again = entry.again(nack.headers or entry.headers)
        again.due = now + nack.delay if nack.delay > 0 else 0.0
        entry.settled = True
        partition.in_flight -= 1
        self._in_flight -= 1
        attempts = int(_number(again.headers.get(ATTEMPTS, "")))
        if attempts or again.due:
            partition.tracker.waiting[offset] = Waiting(attempts, again.due or now)
            partition.dirty = True
        self._inbox.put_back(again)
        self._arrived.set()

    def _retry(self, entry: Entry, nack: Nack) -> Record:
        headers = {**(nack.headers or entry.headers), DUE: f"{self._clock.now() + nack.delay:.6f}"}
        return self._copy(entry, self._route.retries[step_for(nack.delay)], headers)

    def _copy(self, entry: Entry, topic: str, headers: Mapping[str, str]) -> Record:
        # The record's own key: on a keyed channel the copy must come to whoever has the key.
        return Record(topic, entry.body, {**headers, CHANNEL: entry.channel}, encode_key(entry.key))


def _lost(entry: Entry) -> LeaseLost:
    if entry.settled:
        return LeaseLost("the message was settled before")
    return LeaseLost(
        f"its partition {entry.partition.tp.topic} {entry.partition.tp.partition} went to another consumer"
    )


def _number(text: str) -> float:
    """Read a header that anybody may have written; what cannot be meant counts for nothing."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 <= number < _ABSURD else 0.0
