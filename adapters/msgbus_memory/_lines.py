"""A box that keeps the messages of each key in line, one consumer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from msgbus_memory._boxes import Box, Consumer, Entry, Parking

__all__ = ["KeyedBox"]


class Line:
    """The messages of one key.

    Attributes:
        key: The key; for a message without one, its number.
        waiting: A heap of the waiting messages by number.
        held: The handed-out ones by number, all with one consumer.
        parked: Per dead letter that holds back the line: the number of the message it was, and its id (or None
            once a replay took that place).
    """

    __slots__ = ("held", "key", "parked", "waiting")

    def __init__(self, key: str | int) -> None:
        self.key = key
        self.waiting: list[tuple[int, Entry]] = []
        self.held: dict[int, Entry] = {}
        self.parked: dict[int, str | None] = {}

    @property
    def owner(self) -> Consumer | None:
        """The consumer that holds messages of this line."""
        for entry in self.held.values():
            return entry.consumer
        return None

    @property
    def is_parked(self) -> bool:
        """Whether a dead letter holds back the first waiting message (not one that was published before it)."""
        return bool(self.parked) and self.waiting[0][0] >= min(self.parked)


class KeyedBox(Box):
    """Messages of one key are handed out in order, and to one consumer while it holds any of them.

    A line whose head can be handed out has a record, by the head's number, either in `_free` or in its owner's
    `Consumer.lines`. Records are never removed, only found stale: whatever changes a line offers it anew.
    """

    keyed = True

    def __init__(self, name: str, dead: Box | None) -> None:
        super().__init__(name, dead)
        self._lines: dict[str | int, Line] = {}
        self._free: list[tuple[int, Line]] = []
        self._timed: list[tuple[float, int, Line]] = []

    def push(self, entry: Entry, now: float, delay: float = 0.0) -> None:
        """Add a new message; the replay of a dead letter that holds back its key goes first in its line."""
        line = self._lines.get(entry.key) if entry.key is not None else None
        parked = line.parked.items() if line is not None else ()
        place = next((seq for seq, message_id in parked if message_id == entry.id), None)
        if line is None or place is None:
            super().push(entry, now, delay)
            return
        line.parked[place] = None
        entry.seq, entry.time = place, now
        heappush(line.waiting, (place, entry))

    def release(self, entry: Entry) -> None:
        """Take a handed-out message from its consumer and its line."""
        super().release(entry)
        del self._lines[_key(entry)].held[entry.seq]

    def forget(self, entry: Entry, now: float) -> None:
        """Let a released message go for good; its line goes on."""
        super().forget(entry, now)
        line = self._lines[_key(entry)]
        if not line.waiting:
            self._drop_if_empty(line)
        elif not line.held:
            self._offer(line, now)
            self.wake()

    def unpark(self, parking: Parking, now: float) -> None:
        """Let a key go on, unless another dead letter still holds it back."""
        line = self._lines[parking.key]
        del line.parked[parking.seq]
        self._offer(line, now)
        self._drop_if_empty(line)
        self.wake()

    def tick(self, now: float) -> None:
        """Let the time be *now*."""
        while self._timed and self._timed[0][0] <= now:
            self._offer(heappop(self._timed)[2], now)
        super().tick(now)

    def next_look(self) -> float:
        """Return the moment before which nothing changes by itself."""
        moment = super().next_look()
        return min(moment, self._timed[0][0]) if self._timed else moment

    def _append(self, entry: Entry, now: float) -> None:
        key = _key(entry)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        heappush(line.waiting, (entry.seq, entry))
        if len(line.waiting) == 1:
            self._offer(line, now)

    def _put_back(self, entry: Entry, now: float) -> None:
        line = self._lines[_key(entry)]
        heappush(line.waiting, (entry.seq, entry))
        self._offer(line, now)

    def _pop(self, consumer: Consumer, now: float) -> Entry | None:
        while True:
            mine, free = consumer.lines, self._free
            if not mine and not free:
                return None
            heap = mine if mine and (not free or mine[0] < free[0]) else free
            seq, line = heappop(heap)
            head = _head(line) if line.waiting else None
            owner = consumer if heap is mine else None
            if head is None or head.seq != seq or line.owner is not owner or line.is_parked or head.due > now:
                continue
            heappop(line.waiting)
            line.held[seq] = head
            # The line's owner is known by its held messages, and `take` sets this only afterwards.
            head.consumer = consumer
            self._offer(line, now)
            return head

    def _offer(self, line: Line, now: float) -> None:
        if not line.waiting or line.is_parked:
            return
        seq, head = line.waiting[0]
        if head.due > now:
            heappush(self._timed, (head.due, seq, line))
        else:
            owner = line.owner
            heappush(self._free if owner is None else owner.lines, (seq, line))

    def _park(self, entry: Entry) -> Parking | None:
        if entry.key is None:
            return None
        self._lines[entry.key].parked[entry.seq] = entry.id
        return Parking(self, entry.key, entry.seq)

    def _drop_if_empty(self, line: Line) -> None:
        if not (line.waiting or line.held or line.parked):
            del self._lines[line.key]

    def _waiting(self) -> Iterator[Entry]:
        for line in self._lines.values():
            yield from (entry for _, entry in line.waiting)

    # What waits behind a delayed head waits for that delay; what a dead letter holds back is neither ready nor delayed.

    def _ready(self, now: float) -> list[Entry]:
        return [
            entry for line in self._going() if _head(line).due <= now for _, entry in line.waiting if entry.due <= now
        ]

    def _late(self, now: float) -> list[Entry]:
        late = [
            entry for line in self._going() for _, entry in line.waiting if entry.due > now or _head(line).due > now
        ]
        return late + super()._late(now)

    def _going(self) -> Iterator[Line]:
        return (line for line in self._lines.values() if line.waiting and not line.is_parked)


def _head(line: Line) -> Entry:
    return line.waiting[0][1]


def _key(entry: Entry) -> str | int:
    return entry.key if entry.key is not None else entry.seq
