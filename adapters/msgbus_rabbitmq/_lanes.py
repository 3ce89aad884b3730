"""Order per key inside one consumer, while some of a key's messages go back. No I/O.

The broker hands a partition to one consumer at a time, in order. What is left to do here: a message that was
nacked must come before the later ones of its key, and these must wait for it. So a nacked message is returned to
the broker at once (which counts the delivery and brings it straight back, being at the head of its queue), and
it and whatever else of its key is here are held until its delay has passed.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from msgbus.adapter import ID, Received

__all__ = ["Lanes", "Receipt"]

_PATIENCE = 30.0
"""Seconds to wait for a message that was returned to the broker. Only a purge of the queue can keep it."""


@dataclass(slots=True, eq=False)
class Receipt:
    """The handle of a received message.

    Attributes:
        epoch: Counts the channels a subscription had; a tag means nothing on another one.
        tag: The delivery tag.
        queue: The queue it came from.
        key: Its ordering key, where lanes are kept.
        order: Its place among the messages of its key; kept when it comes back.
    """

    epoch: int
    tag: int
    queue: str
    key: str | None = None
    order: int = 0


@dataclass(slots=True)
class _Lane:
    out: set[int] = field(default_factory=set)
    held: list[Received] = field(default_factory=list)
    expected: list[tuple[str, int, float]] = field(default_factory=list)  # message id, order, until when
    due: float = 0.0

    def insert(self, received: Received) -> None:
        insort(self.held, received, key=_order)


class Lanes:
    """The lanes of one subscription."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._order = 0

    def arrive(self, received: Received, now: float) -> list[Received]:
        """Take in a delivery with a key; return what may be handed out now, in order."""
        receipt: Receipt = received.receipt
        assert receipt.key is not None
        lane = self._lanes.get(receipt.key)
        if lane is None:
            lane = self._lanes[receipt.key] = _Lane()
        self._order += 1
        receipt.order = self._order
        if not lane.held and not lane.expected and lane.due <= now:
            lane.out.add(receipt.order)
            return [received]
        _recognise(lane, received)
        lane.insert(received)
        return self.release(receipt.key, now)

    def settled(self, receipt: Receipt, now: float) -> list[Received]:
        """Note that a message is gone; return what may be handed out now."""
        assert receipt.key is not None
        self._lanes[receipt.key].out.discard(receipt.order)
        return self.release(receipt.key, now)

    def returned(self, received: Received, due: float, now: float) -> float:
        """Note that a message was returned to the broker and comes straight back.

        Returns:
            When to call `release` in case it does not.
        """
        receipt: Receipt = received.receipt
        assert receipt.key is not None
        lane = self._lanes[receipt.key]
        lane.out.discard(receipt.order)
        lane.due = max(lane.due, due)
        until = max(now, lane.due) + _PATIENCE
        lane.expected.append((received.headers.get(ID, ""), receipt.order, until))
        return until

    def keep(self, received: Received, due: float, now: float) -> list[Received]:
        """Hold a message here until *due* without telling the broker; return what may be handed out now."""
        receipt: Receipt = received.receipt
        assert receipt.key is not None
        lane = self._lanes[receipt.key]
        lane.out.discard(receipt.order)
        lane.due = max(lane.due, due)
        lane.insert(received)
        return self.release(receipt.key, now)

    def release(self, key: str, now: float) -> list[Received]:
        """Return what of *key* may be handed out now, in order."""
        lane = self._lanes.get(key)
        if lane is None:
            return []
        if lane.expected:
            lane.expected = [entry for entry in lane.expected if entry[2] > now]
        free: list[Received] = []
        if lane.due <= now:
            first = min((order for _, order, _ in lane.expected), default=None)
            while lane.held:
                order = _order(lane.held[0])
                if (lane.out and min(lane.out) < order) or (first is not None and first < order):
                    break
                free.append(lane.held.pop(0))
            lane.out.update(map(_order, free))
            if not lane.out and not lane.held and not lane.expected:
                del self._lanes[key]
        return free

    def forget(self, now: float) -> None:
        """Drop all messages (the channel is lost, they come again), but remember which keys are to wait."""
        self._lanes = {key: _Lane(due=lane.due) for key, lane in self._lanes.items() if lane.due > now}


def _order(received: Received) -> int:
    order: int = received.receipt.order
    return order


def _recognise(lane: _Lane, received: Received) -> None:
    """Give a message that comes back its old place."""
    message_id = received.headers.get(ID, "")
    for position, (expected, order, _) in enumerate(lane.expected):
        if expected == message_id:
            received.receipt.order = order
            del lane.expected[position]
            return
