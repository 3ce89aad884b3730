"""What one source holds: its waiting, delayed and handed-out messages.

Pure and synchronous: the caller says what time it is.

A `Box` hands out messages by age. A `KeyedBox` also keeps one line per key and lets only one consumer at a time
stand at its head. Every operation costs at most the logarithm of the number of waiting messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush, nsmallest
from itertools import count
from typing import Any, NamedTuple

from msgbus.adapter import DeadLetter, Nack, Outcome, Outgoing, Received, Stats
from msgbus.errors import LeaseLost, SettleError

__all__ = ["Box", "Consumer", "Entry", "Parking"]

_NEVER = float("inf")


class Parking(NamedTuple):
    """Where a dead letter holds back its key."""

    box: Box
    key: str
    seq: int


class Entry:
    """One message in one box."""

    __slots__ = (
        "body", "channel", "consumer", "deliveries", "due", "headers", "id", "key", "lease", "parking", "received",
        "returned", "seq", "time",
    )  # fmt: skip

    def __init__(self, body: bytes, headers: dict[str, str], id: str, key: str | None, channel: str) -> None:
        self.body = body
        self.headers = headers
        self.id = id
        self.key = key
        self.channel = channel
        self.seq = 0
        self.time = 0.0
        self.due = 0.0
        self.deliveries = 0
        self.returned = False
        self.lease = 0.0
        self.consumer: Consumer | None = None
        self.received: Received | None = None
        self.parking: Parking | None = None

    @classmethod
    def of(cls, message: Outgoing, headers: dict[str, str], channel: str) -> Entry:
        """Return a new entry of a published message."""
        return cls(message.body, headers, message.id, message.key, channel)

    def show(self) -> Received:
        """Return the message as consumers see it, with headers of its own."""
        return Received(
            self.body, self.headers.copy(), self.deliveries, self.channel, self.key, self.time, self.seq, self
        )


class Consumer:
    """One subscription's view of a box: what it holds, and how to wake it."""

    __slots__ = ("box", "held", "lease", "lines", "prefetch", "wake")

    def __init__(self, box: Box, prefetch: int, lease: float) -> None:
        self.box = box
        self.prefetch = prefetch
        self.lease = lease
        self.held: dict[int, Entry] = {}
        self.lines: list[tuple[int, Any]] = []  # heads of the lines it holds (keyed boxes only)
        self.wake: Callable[[], None] | None = None

    def take(self, limit: int, now: float) -> list[Received]:
        """Hand out up to *limit* messages, and no more than the prefetch allows."""
        return self.box.take(self, min(limit, self.prefetch - len(self.held)), now)

    def settle(self, outcome: Outcome, now: float) -> SettleError | None:
        """Ack, give back or dead-letter a message; `LeaseLost` if it is not this consumer's any more."""
        entry = self._mine(outcome.received)
        if entry is None:
            return LeaseLost(f"message {outcome.received.position} is not held by this consumer (any more)")
        box = self.box
        if isinstance(outcome, DeadLetter) and box.dead is None:
            return SettleError("a dead letter can be acked (dropped) or nacked, not dead-lettered again")
        box.release(entry)
        if isinstance(outcome, Nack):
            box.give_back(entry, now, outcome.delay, counted=outcome.counted)
        else:
            if isinstance(outcome, DeadLetter):
                box.bury(entry, outcome, now)
            box.forget(entry, now)
        return None

    def extend(self, received: Received, seconds: float, now: float) -> SettleError | None:
        """Keep a message's lease for *seconds* more."""
        entry = self._mine(received)
        if entry is None:
            return LeaseLost(f"message {received.position} is not held by this consumer (any more)")
        entry.lease = now + seconds
        self.box.watch(entry.lease)
        return None

    def close(self, now: float) -> None:
        """Give everything back, uncounted, and leave the box."""
        for entry in list(self.held.values()):
            self.box.release(entry)
            self.box.give_back(entry, now, 0.0, counted=False)
        self.box.consumers.pop(self, None)

    def _mine(self, received: Received) -> Entry | None:
        entry = received.receipt
        # The very object that was handed out is the proof of ownership: a later hand-over makes another one.
        return entry if isinstance(entry, Entry) and entry.received is received and entry.consumer is self else None


class Box:
    """The messages of one source, oldest first."""

    keyed = False

    def __init__(self, name: str, dead: Box | None) -> None:
        self.name = name
        self.dead = dead
        self.consumers: dict[Consumer, None] = {}
        self._fresh: deque[Entry] = deque()
        self._returned: list[tuple[int, Entry]] = []
        self._delayed: list[tuple[float, int, Entry]] = []
        self._numbers = count(1)
        # Never later than the first lease that ends; possibly earlier, then the look was for nothing.
        self._first_lease = _NEVER

    def push(self, entry: Entry, now: float, delay: float = 0.0) -> None:
        """Add a new message; with a *delay* it takes its place in the order when it comes due."""
        entry.seq = next(self._numbers)
        entry.time = now
        if delay > 0:
            entry.due = now + delay
            heappush(self._delayed, (entry.due, entry.seq, entry))
        else:
            self._append(entry, now)

    def take(self, consumer: Consumer, limit: int, now: float) -> list[Received]:
        """Hand out up to *limit* messages to *consumer*."""
        self.tick(now)
        lease = now + consumer.lease
        held = consumer.held
        result = []
        while limit > 0:
            entry = self._pop(consumer, now)
            if entry is None:
                break
            limit -= 1
            entry.deliveries += 1
            entry.consumer = consumer
            entry.lease = lease
            held[entry.seq] = entry
            entry.received = received = entry.show()
            result.append(received)
        if result:
            self.watch(lease)
        return result

    def release(self, entry: Entry) -> None:
        """Take a handed-out message from its consumer; what it was handed out as is worth nothing from now on."""
        assert entry.consumer is not None
        consumer, entry.consumer, entry.received = entry.consumer, None, None
        del consumer.held[entry.seq]
        if consumer.wake is not None:
            consumer.wake()

    def give_back(self, entry: Entry, now: float, delay: float, *, counted: bool) -> None:
        """Make a released message available again, after *delay* seconds."""
        entry.returned = True
        entry.due = now + delay
        if not counted:
            entry.deliveries -= 1
        self._put_back(entry, now)
        self.wake()

    def bury(self, entry: Entry, outcome: DeadLetter, now: float) -> None:
        """Put a copy of a released message, with the headers of the dead letter, among the dead."""
        assert self.dead is not None
        copy = Entry(entry.body, dict(outcome.headers), entry.id, entry.key, entry.channel)
        if outcome.park:
            copy.parking = self._park(entry)
        self.dead.push(copy, now)
        self.dead.wake()

    def forget(self, entry: Entry, now: float) -> None:
        """Let a released message go for good, and the key that it parked go on."""
        if entry.parking is not None:
            entry.parking.box.unpark(entry.parking, now)

    def unpark(self, parking: Parking, now: float) -> None:
        """Let a key go on (keyed boxes only)."""

    def watch(self, moment: float) -> None:
        """Remember that a lease ends at *moment*; who waits for messages must look then."""
        if moment < self._first_lease:
            self._first_lease = moment
            self.wake()

    def wake(self) -> None:
        """Wake all who wait: there may be something for them, or an earlier moment to wait for."""
        for consumer in self.consumers:
            if consumer.wake is not None:
                consumer.wake()

    def tick(self, now: float) -> None:
        """Let the time be *now*: delayed messages come due, leases end."""
        while self._delayed and self._delayed[0][0] <= now:
            entry = heappop(self._delayed)[2]
            if entry.returned:
                heappush(self._returned, (entry.seq, entry))
            else:
                entry.seq = next(self._numbers)
                self._append(entry, now)
        if self._first_lease <= now:
            self._end_leases(now)

    def _end_leases(self, now: float) -> None:
        ended = [entry for entry in self._held() if entry.lease <= now]
        for entry in ended:
            self.release(entry)
        self._first_lease = min((entry.lease for entry in self._held()), default=_NEVER)
        for entry in sorted(ended, key=lambda entry: entry.seq):
            self.give_back(entry, now, 0.0, counted=True)

    def next_look(self) -> float:
        """Return the moment before which nothing changes by itself."""
        return min(self._first_lease, self._delayed[0][0] if self._delayed else _NEVER)

    def stats(self, now: float) -> Stats:
        """Return the box's figures."""
        self.tick(now)
        ready, delayed = self._ready(now), self._late(now)
        moments = [entry.due for entry in delayed if entry.due > now]
        moments += [entry.lease for entry in self._held()]
        return Stats(
            ready=len(ready),
            in_flight=sum(len(consumer.held) for consumer in self.consumers),
            delayed=len(delayed),
            dead=0 if self.dead is None else self.dead.size(),
            oldest_age=now - min(entry.time for entry in ready) if ready else None,
            next_due=min(moments, default=None),
        )

    def size(self) -> int:
        """Return how many messages there are, in whatever state."""
        return sum(1 for _ in self._all())

    def browse(self, limit: int, after: int) -> list[Received]:
        """Return up to *limit* messages numbered above *after*, in order, in whatever state they are."""
        entries = nsmallest(limit, (e for e in self._all() if e.seq > after), key=lambda entry: entry.seq)
        return [entry.show() for entry in entries]

    def _held(self) -> Iterator[Entry]:
        return (entry for consumer in self.consumers for entry in consumer.held.values())

    def _all(self) -> Iterator[Entry]:
        yield from self._held()
        yield from self._waiting()
        yield from (entry for _, _, entry in self._delayed)

    # What a keyed box does otherwise:

    def _append(self, entry: Entry, now: float) -> None:
        self._fresh.append(entry)

    def _put_back(self, entry: Entry, now: float) -> None:
        if entry.due > now:
            heappush(self._delayed, (entry.due, entry.seq, entry))
        else:
            heappush(self._returned, (entry.seq, entry))

    def _pop(self, consumer: Consumer, now: float) -> Entry | None:
        if self._returned and (not self._fresh or self._returned[0][0] < self._fresh[0].seq):
            return heappop(self._returned)[1]
        return self._fresh.popleft() if self._fresh else None

    def _park(self, entry: Entry) -> Parking | None:
        return None

    def _waiting(self) -> Iterable[Entry]:
        yield from self._fresh
        yield from (entry for _, entry in self._returned)

    def _ready(self, now: float) -> list[Entry]:
        return list(self._waiting())

    def _late(self, now: float) -> list[Entry]:
        return [entry for _, _, entry in self._delayed]
