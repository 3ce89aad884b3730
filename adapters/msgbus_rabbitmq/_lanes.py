"""Order per key inside one consumer, while some of a key's messages go back. No I/O.

The broker hands a partition to one consumer at a time, in order. What is left to do here: a message that was nacked
must come before the later ones of its key, and these must wait for it. So it is held here, unacked, with whatever
else of its key arrives, until its delay has passed. It is not returned to the broker meanwhile: RabbitMQ returns
what a lost consumer held in the order of its delivery tags, so a message that had been returned and handed out once
more would come after the later ones of its key.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from msgbus.adapter import Received

__all__ = ["Lanes", "Receipt"]


@dataclass(slots=True, eq=False)
class Receipt:
    """The handle of a received message.

    Attributes:
        epoch: Counts the channels a subscription had; a tag means nothing on another one.
        tag: The delivery tag. Tags of one partition are in the order of publishing.
        queue: The queue it came from.
        key: Its ordering key, where lanes are kept.
    """

    epoch: int
    tag: int
    queue: str
    key: str | None = None


@dataclass(slots=True)
class _Lane:
    out: set[int] = field(default_factory=set)  # tags that were handed out and are not settled
    held: list[Received] = field(default_factory=list)
    due: float = 0.0


class Lanes:
    """The lanes of one subscription."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def arrive(self, received: Received, now: float) -> list[Received]:
        """Take in a message with a key; return what may be handed out now, in order."""
        receipt: Receipt = received.receipt
        assert receipt.key is not None
        lane = self._lanes.get(receipt.key)
        if lane is None:
            lane = self._lanes[receipt.key] = _Lane()
        if not lane.held and lane.due <= now:
            lane.out.add(receipt.tag)
            return [received]
        insort(lane.held, received, key=_tag)
        return self.release(receipt.key, now)

    def settled(self, receipt: Receipt, now: float) -> list[Received]:
        """Note that a message is gone; return what may be handed out now."""
        assert receipt.key is not None
        self._lanes[receipt.key].out.discard(receipt.tag)
        return self.release(receipt.key, now)

    def hold(self, messages: list[Received], due: float, now: float) -> list[Received]:
        """Take a nacked message back until *due*, and those of its key that nobody has seen yet.

        Returns:
            What may be handed out now.
        """
        key = messages[0].receipt.key
        lane = self._lanes[key]
        lane.due = max(lane.due, due)
        for received in messages:
            lane.out.discard(_tag(received))
            insort(lane.held, received, key=_tag)
        return self.release(key, now)

    def release(self, key: str, now: float) -> list[Received]:
        """Return what of *key* may be handed out now, in order: nothing before an earlier one is settled."""
        lane = self._lanes.get(key)
        if lane is None or lane.due > now:
            return []
        first = min(lane.out, default=None)
        free: list[Received] = []
        while lane.held and (first is None or _tag(lane.held[0]) < first):
            free.append(lane.held.pop(0))
        lane.out.update(map(_tag, free))
        if not lane.out and not lane.held:
            del self._lanes[key]
        return free

    @property
    def is_holding(self) -> bool:
        """Whether a message is held, or a key is to wait."""
        return any(lane.held or lane.due for lane in self._lanes.values())

    def forget(self, now: float) -> None:
        """Drop all messages (the channel is lost, they come again), but remember which keys are to wait."""
        self._lanes = {key: _Lane(due=lane.due) for key, lane in self._lanes.items() if lane.due > now}


def _tag(received: Received) -> int:
    tag: int = received.receipt.tag
    return tag
