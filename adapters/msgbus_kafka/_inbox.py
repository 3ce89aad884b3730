"""What a subscription has fetched and not handed out: in order, with delays, and with a lane per key.

Messages are numbered as they arrive, and what comes back keeps its number, so that it is handed out again before
what was fetched after it. On a keyed source a message that comes back opens a *lane* for its key: until the lane is
empty, later messages of the key wait in it behind the one that is not due yet. Other keys pass.

Pure bookkeeping, no I/O.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRecord

from msgbus.adapter import ATTEMPTS, EXPIRES, Received
from msgbus_kafka._begin import to_position
from msgbus_kafka._wire import decode_key, encode_key, from_headers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from msgbus_kafka._partition import Partition

__all__ = ["Entry", "Inbox"]


class Entry(Received):
    """A fetched record, and the message that is handed out for it: one object, since there is one per message.

    What few ask for is made when it is asked for. The record itself is let go: with its lists and tuples it would be
    most of what the garbage collector looks through.

    Args:
        record: The record as it was parsed, or as the library made it.
        headers: What the core made of its headers.

    Attributes:
        offset: The record's.
        number: Its place in the order of arrival.
        partition: Where it is from.
        due: Not to be handed out before, in seconds since 1970; 0 for at once.
        aside: Whether it is in another topic than the channel's, where it has no position.
        laned: Whether it waits in its key's lane.
        settled: True once it is finished, moved or has come back as a new entry.
    """

    __slots__ = (
        "_headers",
        "_timestamp",
        "_timestamp_type",
        "_tombstone",
        "_wire",
        "aside",
        "due",
        "laned",
        "number",
        "offset",
        "partition",
        "settled",
    )

    deliveries = 0
    receipt = None
    correlation = None
    partition: Partition
    number: int

    def __init__(self, record: Any, headers: dict[str, str] | None = None) -> None:
        self.offset: int = record.offset
        self._timestamp = record.timestamp
        self._timestamp_type = record.timestamp_type
        value, key = record.value, record.key
        self._tombstone = value is None
        self.body = value or b""
        self.key = None if key is None else decode_key(key)
        pairs = record.headers
        wire = dict(pairs)
        self._wire = wire if len(wire) == len(pairs) else pairs  # of equal names, `raw` has each
        self.plain = headers is None and ATTEMPTS not in wire and EXPIRES not in wire
        self.due = 0.0
        self.aside = False
        self.laned = False
        self.settled = False
        self._headers = headers

    def arrived(self, number: int, partition: Partition, channel: str) -> Entry:
        """Note where it is from and when it came; return itself."""
        self.number = number
        self.partition = partition
        self.channel = channel
        return self

    def again(self, headers: dict[str, str]) -> Entry:
        """Return the entry that stands for the message from now on, in the same place, with these *headers*."""
        entry = Entry(self.raw, headers).arrived(self.number, self.partition, self.channel)
        entry.aside = self.aside
        return entry

    @property
    def headers(self) -> dict[str, str]:  # type: ignore[override]
        """The record's headers as text."""
        headers = self._headers
        if headers is None:
            headers = self._headers = from_headers(self._pairs)
        return headers

    @property
    def _pairs(self) -> Collection[tuple[str, bytes | None]]:
        wire = self._wire
        return wire.items() if isinstance(wire, dict) else wire

    @property
    def time(self) -> float:  # type: ignore[override]
        """The record's time."""
        return float(self._timestamp) / 1000

    @property
    def position(self) -> int | None:  # type: ignore[override]
        """Partition and offset in one number."""
        return None if self.aside else to_position(self.partition.tp.partition, self.offset)

    @property
    def raw(self) -> ConsumerRecord[bytes, bytes]:
        """The library's record."""
        tp, key = self.partition.tp, encode_key(self.key)
        return ConsumerRecord(
            tp.topic,
            tp.partition,
            self.offset,
            self._timestamp,
            self._timestamp_type,
            key,
            None if self._tombstone else self.body,
            None,  # a checksum, which records have not had for long
            -1 if key is None else len(key),
            -1 if self._tombstone else len(self.body),
            tuple(self._pairs),
        )

    def __repr__(self) -> str:
        return f"<Entry {self.partition} {self.offset}>"

    def __lt__(self, other: Entry) -> bool:
        return self.number < other.number


class Inbox:
    """The entries of one subscription that are not handed out.

    Args:
        keyed: Whether messages of one key keep their order.
    """

    def __init__(self, *, keyed: bool) -> None:
        self.number = count()
        self._keyed = keyed
        self._fresh: deque[Entry] = deque()
        self._again: list[Entry] = []
        self._later: list[tuple[float, int, Entry]] = []
        self._lanes: dict[str, list[Entry]] = {}

    def __len__(self) -> int:
        """How many may be handed out at once, those due from the timers not counted."""
        return len(self._fresh) + len(self._again)

    def extend(self, entries: Iterable[Entry]) -> None:
        """Take in records that were just fetched and need not wait."""
        self._fresh.extend(entries)

    def put(self, entry: Entry) -> None:
        """Take in a record that was just fetched."""
        if entry.due:
            self._wait(entry)
        else:
            self._fresh.append(entry)

    def put_back(self, entry: Entry) -> None:
        """Take in a record that comes back."""
        if self._keyed and entry.key is not None:
            self._enter_lane(entry)
        elif entry.due:
            self._wait(entry)
        else:
            heapq.heappush(self._again, entry)

    def _wait(self, entry: Entry) -> None:
        entry.partition.waits(entry)
        heapq.heappush(self._later, (entry.due, entry.number, entry))

    def _enter_lane(self, entry: Entry) -> None:
        entry.laned = True
        heapq.heappush(self._lanes.setdefault(entry.key or "", []), entry)
        self._wait(entry)

    def take(self, limit: int, now: float) -> list[Entry]:
        """Remove and return up to *limit* entries that are due."""
        taken: list[Entry] = []
        if self._later:
            self._wake(limit, now, taken)
        if not self._lanes and not self._again:
            fresh = self._fresh
            for _ in range(min(limit - len(taken), len(fresh))):
                taken.append(fresh.popleft())  # noqa: PERF401 - a comprehension would build a second list
            return taken
        while len(taken) < limit and (entry := self._pop()) is not None:
            if self._keyed and entry.key is not None and entry.key in self._lanes:
                self._enter_lane(entry)
            else:
                taken.append(entry)
        return taken

    def _pop(self) -> Entry | None:
        fresh, again = self._fresh, self._again
        if again and (not fresh or again[0].number < fresh[0].number):
            return heapq.heappop(again)
        return fresh.popleft() if fresh else None

    def _wake(self, limit: int, now: float, taken: list[Entry]) -> None:
        """Move what is due from the timers to where it is handed out from."""
        later = self._later
        while later and later[0][0] <= now:
            entry = later[0][2]
            if entry.laned and not self._empty_lane(entry.key or "", limit, now, taken):
                return  # no room for the rest of the lane: its timer stays
            heapq.heappop(later)
            if not entry.laned and entry.due:
                entry.partition.woke(entry)
                entry.due = 0.0
                heapq.heappush(self._again, entry)

    def _empty_lane(self, key: str, limit: int, now: float, taken: list[Entry]) -> bool:
        """Hand out what is due at the head of a lane; False if there was no room for all of it."""
        lane = self._lanes.get(key, [])
        while lane and lane[0].due <= now:
            if len(taken) >= limit:
                return False
            entry = heapq.heappop(lane)
            entry.partition.woke(entry)
            entry.due = 0.0
            taken.append(entry)
        if not lane:
            self._lanes.pop(key, None)
        return True

    def next_due(self) -> float | None:
        """When the next waiting entry is due, in seconds since 1970."""
        return self._later[0][0] if self._later else None

    def drop_dead(self) -> None:
        """Forget the entries of partitions that are not live any more."""
        self._fresh = deque(entry for entry in self._fresh if entry.partition.live)
        self._again = [entry for entry in self._again if entry.partition.live]
        heapq.heapify(self._again)
        self._later = [item for item in self._later if item[2].partition.live]
        heapq.heapify(self._later)
        for key, lane in list(self._lanes.items()):
            lane[:] = [entry for entry in lane if entry.partition.live]
            heapq.heapify(lane)
            if not lane:
                del self._lanes[key]
